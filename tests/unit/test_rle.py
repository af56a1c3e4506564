"""Run lengths of masks: COCO's form to the letter, and every mask comes back."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine.outputs import rle
from engine.outputs.rle import Crop, decode, decode_crops, encode, run_lengths


def coco_string(counts: list[int]) -> str:
    """rleToString of cocoapi's maskApi.c, line by line."""
    text = ""
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            c = x & 0x1F
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            text += chr((c | 0x20 if more else c) + 48)
    return text


def plain_counts(mask: npt.NDArray[np.uint8]) -> list[int]:
    """rleEncode of maskApi.c: down the columns, zeros first."""
    counts, current, length = [], 0, 0
    for value in mask.flatten(order="F"):
        if bool(value) != bool(current):
            counts.append(length)
            current, length = value, 0
        length += 1
    return [*counts, length]


def test_the_example_of_cocos_own_documentation() -> None:
    # maskApi.h: M=[0 0 1 1 1 0 1] has the run lengths [2 3 1 1], M=[1 1 1 1 1 1 0] has [0 6 1].
    for row, counts in (([0, 0, 1, 1, 1, 0, 1], [2, 3, 1, 1]), ([1, 1, 1, 1, 1, 1, 0], [0, 6, 1])):
        mask = np.array([row], np.uint8).T
        assert run_lengths(mask).tolist() == counts


def test_a_mask_is_one_json_object_of_size_and_counts() -> None:
    mask = np.zeros((4, 3), np.uint8)
    mask[1:3, 1] = 1
    assert json.loads(encode(mask)) == {"size": [4, 3], "counts": "525"}
    assert encode(mask) == '{"size":[4,3],"counts":"525"}'


@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1), (256, 256), (5000, 3), (3, 5000)])
def test_empty_and_full_masks_come_back(shape: tuple[int, int], fill: int) -> None:
    mask = np.full(shape, fill, np.uint8)
    np.testing.assert_array_equal(decode(encode(mask)), mask)


@given(
    arrays.arrays(
        np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 1)
    )
)
@settings(max_examples=60, deadline=None)
def test_every_mask_is_written_as_coco_writes_it_and_comes_back(mask: npt.NDArray[np.uint8]) -> None:
    text = encode(mask)
    assert json.loads(text)["counts"] == coco_string(plain_counts(mask))
    np.testing.assert_array_equal(decode(text), mask)


def test_long_runs_and_falling_lengths_are_written_as_coco_writes_them() -> None:
    mask = np.zeros((600, 500), np.uint8)
    mask[3:590, 40:44] = 1
    mask[300, 100:400:7] = 1
    assert json.loads(encode(mask))["counts"] == coco_string(plain_counts(mask))
    np.testing.assert_array_equal(decode(encode(mask)), mask)


def test_any_value_but_zero_is_inside_and_strides_do_not_matter() -> None:
    wide = np.zeros((8, 12), np.uint8)
    wide[2:5, 3:9] = 255
    np.testing.assert_array_equal(decode(encode(wide[::2, 1::3])), wide[::2, 1::3] // 255)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"size":[2,2]}', '{"size":[2,2],"counts":"5"}', '{"size":[2,2],"counts":"T"}',
     '{"size":[2,2],"counts":"~"}', '{"size":[2,2],"counts":5}'],
)  # fmt: skip
def test_what_is_no_mask_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"run length|Expecting"):
        decode(text)


def whole(crop: Crop) -> npt.NDArray[np.uint8]:
    """The mask that a crop is of."""
    mask = np.zeros(crop.shape, np.uint8)
    mask[:, crop.left : crop.left + crop.inside.shape[1]] = crop.inside
    return mask


MASKS = arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.sampled_from([0, 0, 0, 1])
)


@given(st.lists(MASKS, max_size=6))
@settings(max_examples=60, deadline=None)
def test_masks_come_back_together_as_they_do_alone(masks: list[npt.NDArray[np.uint8]]) -> None:
    crops = list(decode_crops([encode(mask) for mask in masks]))
    assert len(crops) == len(masks)
    for mask, crop in zip(masks, crops, strict=True):
        np.testing.assert_array_equal(whole(crop), mask)
        filled = np.flatnonzero(mask.any(axis=0))
        assert crop.inside.shape[1] == (filled[-1] - filled[0] + 1 if filled.size else 0)


def test_masks_of_many_runs_come_back_group_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [np.random.default_rng(seed).integers(0, 2, (20, 30), np.uint8) for seed in range(9)]
    texts = [encode(mask) for mask in masks]
    monkeypatch.setattr(rle, "_TOGETHER", len(texts[0]) + len(texts[1]))
    for mask, crop in zip(masks, decode_crops(texts), strict=True):
        np.testing.assert_array_equal(whole(crop), mask)


def test_large_masks_of_long_and_short_runs_come_back_together() -> None:
    wide, tall = np.zeros((600, 500), np.uint8), np.zeros((4000, 3), np.uint8)
    wide[3:590, 40:44] = 1
    wide[300, 100:400:7] = 1
    tall[:, 1] = 1
    full = np.ones((70, 900), np.uint8)
    masks = [wide, tall, full, wide.T.copy(), np.zeros((5, 5), np.uint8), tall]
    for mask, crop in zip(masks, decode_crops([encode(mask) for mask in masks]), strict=True):
        np.testing.assert_array_equal(whole(crop), mask)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "1,2", '{"size":[2,2]}', '{"size":[2,2],"counts":"5"}', '{"size":[2,2],"counts":"T"}',
     '{"size":[2,2],"counts":""}', '{"size":[2,2],"counts":"~"}', '{"size":[2,2],"counts":5}',
     '{"size":[0,0],"counts":"0"}', '{"size":[2],"counts":"4"}', '{"size":[1e300,2],"counts":"4"}',
     '{"size":[2,2],"counts":"PPPPPPPPPPPPPPPP4"}', '{"size":[2,2],"counts":"5O"}'],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_that_is_no_mask_is_refused_among_others(text: str, place: int) -> None:
    texts = [encode(np.eye(3, dtype=np.uint8))] * 2
    with pytest.raises(ValueError, match=r"run length|Expecting|array|reshape"):
        list(decode_crops([*texts[:place], text, *texts[place:]]))
