"""Components of volumes: found slice by slice as a labelling of the whole volume finds them, and filtered."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.outputs.components import Rule, find_components

ndimage = pytest.importorskip("scipy.ndimage")

Volume = npt.NDArray[np.uint8]


def kept(volume: Volume, rule: str, voxel_ml: float | None = None) -> Volume:
    found = find_components(volume)
    chosen = Rule.parse(rule).kept(found.voxels, voxel_ml)
    return np.stack([found.keep(number, mask, chosen) for number, mask in enumerate(volume)])


def blobs(seed: int, share: float, shape: tuple[int, int, int] = (7, 14, 17)) -> Volume:
    return (np.random.default_rng(seed).random(shape) < share).astype(np.uint8)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.06, 0.1, 0.3, 1.0]))
@settings(max_examples=60, deadline=None)
def test_components_are_those_of_the_whole_volume_at_once(seed: int, share: float) -> None:
    volume = blobs(seed, share)
    labels, count = ndimage.label(volume, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    found = find_components(volume)
    assert sorted(found.voxels) == sorted(sizes)
    np.testing.assert_array_equal(kept(volume, "4"), np.append(0, sizes >= 4)[labels] * volume)
    if count:
        largest = kept(volume, "largest")
        assert largest.sum() == sizes.max()
        assert len(np.unique(labels[largest == 1])) == 1


def test_a_bridge_of_one_corner_makes_one_component() -> None:
    volume = np.zeros((2, 5, 5), np.uint8)
    volume[0, :2, :2] = 1
    volume[1, 2:, 2:] = 1
    assert find_components(volume).voxels.tolist() == [13]


def test_arms_that_meet_in_a_later_slice_are_one_component() -> None:
    volume = np.zeros((3, 4, 9), np.uint8)
    volume[0, 1, [1, 4, 7]] = 1
    volume[1, 1, 1:5] = 1
    volume[2, 1, 4:8] = 1
    volume[1, 1, 7] = 1
    assert find_components(volume).voxels.tolist() == [12]


def test_of_equally_large_components_the_first_is_kept() -> None:
    volume = np.zeros((3, 6, 6), np.uint8)
    volume[0, 4, 4] = volume[0, 1, 1] = volume[2, 5, 5] = 1
    left = kept(volume, "largest")
    assert np.argwhere(left).tolist() == [[0, 1, 1]]


def test_an_empty_slice_parts_what_lies_on_both_of_its_sides() -> None:
    volume = np.zeros((3, 4, 4), np.uint8)
    volume[0, 1, 1] = volume[2, 1, 1] = 1
    assert find_components(volume).voxels.tolist() == [1, 1]
    assert find_components([volume[0], None, volume[2]]).voxels.tolist() == [1, 1]


def test_slices_of_different_sizes_are_no_neighbours() -> None:
    found = find_components([np.ones((4, 4), np.uint8), np.ones((5, 4), np.uint8)])
    assert found.voxels.tolist() == [16, 20]


def test_a_volume_without_slices_has_no_component() -> None:
    assert find_components([]).voxels.tolist() == []
    assert kept(np.zeros((2, 3, 3), np.uint8), "largest").sum() == 0


def test_millilitres_become_voxels_by_the_size_of_one() -> None:
    volume = np.zeros((1, 4, 9), np.uint8)
    volume[0, 1, :4] = volume[0, 3, :6] = 1
    assert kept(volume, "0.5ml", voxel_ml=0.1).sum() == 6
    assert kept(volume, "0.4ml", voxel_ml=0.1).sum() == 10
    assert kept(volume, "0.5ml").sum() == 10


@pytest.mark.parametrize(
    ("text", "rule"),
    [("all", Rule("all")), (" Largest", Rule("largest", largest=True)), ("50", Rule("50", voxels=50)),
     ("0.50ml", Rule("0.5ml", ml=0.5)), ("2.0", Rule("2", voxels=2))],
)  # fmt: skip
def test_a_rule_is_a_word_a_number_of_voxels_or_millilitres(text: str, rule: Rule) -> None:
    assert Rule.parse(text) == rule
    assert Rule.parse(text).keeps_all == (text == "all")


@pytest.mark.parametrize("text", ["", "some", "0", "-3", "1.5", "0ml", "ml", "3 litres", "1e3"])
def test_any_other_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--components .*: give all, largest"):
        Rule.parse(text)
