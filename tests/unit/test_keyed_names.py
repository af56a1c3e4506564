"""Names behind their keys are the pairs that they stand for, in their order, and small."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from engine.sources.folders import natural_key
from engine.sources.keyed_names import KeyedNames

names_of_disks = st.binary(min_size=1, max_size=40).filter(lambda name: not {0, 47} & set(name))


@given(st.lists(names_of_disks, unique=True))
def test_they_are_the_pairs_sorted_as_pairs_are(names: list[bytes]) -> None:
    packed = KeyedNames()
    for name in names:
        packed.add(natural_key(name), name)
    packed.sort()
    pairs = sorted((natural_key(name), name) for name in names)
    assert list(packed) == pairs
    assert len(packed) == len(pairs)
    assert [packed[i] for i in range(len(pairs))] == pairs
    assert list(packed[1:3]) == pairs[1:3]


def test_a_long_name_is_kept_whole() -> None:
    packed = KeyedNames()
    for length in (1, 255, 256, 1024, 65_535):
        packed.add(b"key\0", b"n" * length)
    assert [len(name) for _, name in packed] == [1, 255, 256, 1024, 65_535]
    assert {key for key, _ in packed} == {b"key\0"}


def test_they_take_little_memory() -> None:
    tracemalloc.start()
    packed = KeyedNames()
    for number in range(10_000):
        name = b"slice_%07d.tif" % number
        packed.add(natural_key(name), name)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(packed) < 100
