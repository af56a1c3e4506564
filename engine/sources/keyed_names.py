"""Names of a folder behind the keys that sort them, in half the memory of a list of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

KeyedName = tuple[bytes, bytes]
"""A name behind its `natural_key`."""

_LENGTH_BYTES = 2


class KeyedNames(Sequence[KeyedName]):
    """A sequence of pairs of which each is kept as one string: key, name, and the name's length.

    As no key begins another one, these sort as the pairs do.
    """

    __slots__ = ("_packed",)

    def __init__(self, packed: list[bytes] | None = None) -> None:
        """Empty; `packed` is its own."""
        self._packed = [] if packed is None else packed

    def add(self, key: bytes, name: bytes) -> None:
        """Put a name (up to 64 KB) at the end."""
        self._packed.append(key + name + len(name).to_bytes(_LENGTH_BYTES, "little"))

    def sort(self) -> None:
        """Sort by keys."""
        self._packed.sort()

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, place: int) -> KeyedName: ...

    @overload
    def __getitem__(self, place: slice) -> KeyedNames: ...

    def __getitem__(self, place: int | slice) -> KeyedName | KeyedNames:
        if isinstance(place, slice):
            return KeyedNames(self._packed[place])
        return next(iter(KeyedNames([self._packed[place]])))

    def __iter__(self) -> Iterator[KeyedName]:
        for packed in self._packed:
            end = len(packed) - _LENGTH_BYTES
            start = end - (packed[-2] | packed[-1] << 8)
            yield packed[:start], packed[start:end]
