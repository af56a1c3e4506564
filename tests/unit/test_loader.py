from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from engine.errors import UsageError
from engine.sources.geometry import fit, place

pytest.importorskip("keras", reason="needs the train extra")

from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

from trainer.augment import AUGMENTATIONS, Augmentation
from trainer.cache import SliceCache
from trainer.dataset import load_frame
from trainer.loader import SliceBatches, standardise

U8 = npt.NDArray[np.uint8]

SIZES = [(256, 256), (200, 300), (512, 512), (64, 40), (256, 256), (256, 256), (256, 256)]


def draw(number: int, height: int, width: int) -> tuple[U8, U8]:
    """A slice that no other equals, [h,w,3] RGB, and its mask of 0/255; every third has no tumour."""
    image = np.random.default_rng(number).integers(1, 256, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    if number % 3:
        cv2.circle(mask, (width // 2, height // 3), min(height, width) // 5, 255, -1)
    image[mask > 0] = 250
    return image, mask


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("tree") / "TCGA_CS_1_19990101"
    folder.mkdir()
    for number, size in enumerate(SIZES):
        image, mask = draw(number, *size)
        assert cv2.imwrite(str(folder / f"slice_{number}.tif"), image[..., ::-1])
        assert cv2.imwrite(str(folder / f"slice_{number}_mask.tif"), mask)
    return load_frame(folder.parent)


def images_of(batches: SliceBatches) -> U8:
    return np.concatenate([batches[index][0] for index in range(len(batches))])


def batches_of(batches: SliceBatches) -> Iterator[tuple[U8, npt.NDArray[np.float32]]]:
    """The batches of an epoch as Keras gets them, through its worker threads where there are any."""
    adapter = PyDatasetAdapter(batches)
    adapter.on_epoch_begin()
    yield from adapter.get_numpy_iterator()
    adapter.on_epoch_end()


def fitted(image: U8) -> U8:
    out = np.zeros((256, 256, 3), np.uint8)
    fit(image, out)
    return out


def test_the_last_batch_holds_what_is_left(frame: pd.DataFrame) -> None:
    batches = SliceBatches(frame, target="mask", batch_size=3)
    assert [len(batches[index][0]) for index in range(len(batches))] == [3, 3, 1]


@pytest.mark.parametrize(("size", "count"), [(7, 1), (16, 1), (1, 7)])
def test_a_batch_may_hold_all_or_one(frame: pd.DataFrame, size: int, count: int) -> None:
    batches = SliceBatches(frame, target="class", batch_size=size)
    assert len(batches) == count
    assert len(images_of(batches)) == len(SIZES)


def test_images_are_scaled_as_scoring_scales_them(frame: pd.DataFrame) -> None:
    given = images_of(SliceBatches(frame, target="mask", batch_size=4))
    assert given.dtype == np.uint8
    for number, size in enumerate(SIZES):
        np.testing.assert_array_equal(given[number], fitted(draw(number, *size)[0]))


def test_masks_lie_where_their_images_lie(frame: pd.DataFrame) -> None:
    masks = SliceBatches(frame, target="mask")[0][1]
    assert masks.shape == (7, 256, 256, 1)
    assert masks.dtype == np.float32
    assert set(np.unique(masks)) == {0.0, 1.0}
    for number, size in enumerate(SIZES):
        mask, box = masks[number, ..., 0], place(*size)
        inside = mask[box.top : box.top + box.height, box.left : box.left + box.width]
        assert inside.sum() == mask.sum()
        assert mask.any() == bool(number % 3)
        true = draw(number, *size)[1] > 0
        assert mask.sum() / (box.height * box.width) == pytest.approx(true.mean(), rel=0.05)
    smooth = fitted(np.dstack([draw(1, 200, 300)[1]] * 3))[..., 0] > 127
    assert ((masks[1, ..., 0] > 0) != smooth).mean() < 1e-3


def test_classes_are_one_hot_with_tumour_second(frame: pd.DataFrame) -> None:
    classes = SliceBatches(frame, target="class", batch_size=7)[0][1]
    assert classes.dtype == np.float32
    assert classes.tolist() == [[1.0, 0.0] if number % 3 == 0 else [0.0, 1.0] for number in range(7)]


def test_unshuffled_slices_come_in_the_frames_order_in_every_epoch(frame: pd.DataFrame) -> None:
    batches = SliceBatches(frame, target="class", batch_size=3)
    first = images_of(batches)
    batches.begin_epoch(4)
    np.testing.assert_array_equal(images_of(batches), first)


def test_the_order_is_the_same_for_the_same_seed_and_epoch_and_another_otherwise(
    frame: pd.DataFrame,
) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = SliceBatches(frame, target="class", batch_size=3, shuffle=True, seed=seed)
        batches.begin_epoch(epoch)
        return [int(which) for which in batches.order]

    assert order(1, 2) == order(1, 2)
    assert sorted(order(1, 2)) == list(range(7))
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1, 2)}) == 6


def test_an_epoch_is_the_same_whether_others_came_before_it_or_not(frame: pd.DataFrame) -> None:
    through = SliceBatches(frame, target="mask", shuffle=True, augmentation=Augmentation(), seed=3)
    for epoch in (0, 1, 2):
        through.begin_epoch(epoch)
        seen = through[0]
    resumed = SliceBatches(frame, target="mask", shuffle=True, augmentation=Augmentation(), seed=3)
    resumed.begin_epoch(2)
    for before, after in zip(seen, resumed[0], strict=True):
        np.testing.assert_array_equal(before, after)


def test_an_epoch_holds_all_tumour_slices_and_a_share_of_the_others_drawn_anew(frame: pd.DataFrame) -> None:
    many = pd.concat([frame] * 8, ignore_index=True)  # 32 with tumour, 24 without
    batches = SliceBatches(many, target="class", batch_size=5, shuffle=True, negatives=0.25, seed=1)
    clear = []
    for epoch in range(3):
        batches.begin_epoch(epoch)
        labels = many["mask"].to_numpy()[batches.order]
        assert (labels.sum(), len(labels)) == (32, 38)
        assert len(set(batches.order.tolist())) == 38
        assert len(batches) == 8
        clear.append(sorted(batches.order[labels == 0].tolist()))
    assert clear[0] != clear[1] != clear[2] != clear[0]
    again = SliceBatches(many, target="class", batch_size=5, shuffle=True, negatives=0.25, seed=1)
    again.begin_epoch(2)
    np.testing.assert_array_equal(again.order, batches.order)


@pytest.mark.parametrize(("negatives", "count"), [(0.0, 4), (1.0, 7)])
def test_an_epoch_may_hold_none_or_all_of_the_others(
    frame: pd.DataFrame, negatives: float, count: int
) -> None:
    assert len(SliceBatches(frame, target="mask", negatives=negatives).order) == count


def test_a_cache_and_more_workers_change_nothing(frame: pd.DataFrame) -> None:
    def epochs(cache: SliceCache | None, workers: int) -> list[U8]:
        batches = SliceBatches(
            frame, target="mask", batch_size=2, shuffle=True, augmentation=AUGMENTATIONS["full"], cache=cache,
            workers=workers,
        )  # fmt: skip
        seen = []
        for epoch in range(2):
            batches.begin_epoch(epoch)
            seen.append(np.concatenate([images for images, _ in batches_of(batches)]))
        return seen

    for first, second in zip(epochs(None, 1), epochs(SliceCache(1 << 30), 3), strict=True):
        np.testing.assert_array_equal(first, second)


def test_images_answers_and_order_stay_together_when_shuffled(frame: pd.DataFrame) -> None:
    plain = SliceBatches(frame, target="mask", batch_size=7)[0]
    batches = SliceBatches(frame, target="mask", batch_size=7, shuffle=True, seed=1)
    assert batches.order.tolist() != list(range(7))
    np.testing.assert_array_equal(batches[0][0], plain[0][batches.order])
    np.testing.assert_array_equal(batches[0][1], plain[1][batches.order])


def test_augmented_masks_stay_0_or_1_and_move_with_their_images(frame: pd.DataFrame) -> None:
    tumours = frame.iloc[[4, 5]]
    unshaded = Augmentation(gain=0, offset=0, bias_field=0, drop_channel=0)
    batches = SliceBatches(tumours, target="mask", augmentation=unshaded)
    still = SliceBatches(tumours, target="mask")[0][1]
    for epoch in range(3):
        batches.begin_epoch(epoch)
        images, masks = batches[0]
        assert set(np.unique(masks)) == {0.0, 1.0}
        assert not np.array_equal(masks, still)
        # The lesion is drawn flat, 250; all around it is noise.
        for image, mask in zip(images, masks[..., 0] > 0, strict=True):
            assert (image[cv2.erode(mask.astype(np.uint8), np.ones((5, 5))) > 0] == 250).mean() > 0.99
            assert (image[~(cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) > 0)] == 250).mean() < 0.02


def test_augmentation_changes_from_epoch_to_epoch(frame: pd.DataFrame) -> None:
    batches = SliceBatches(frame, target="class", augmentation=Augmentation())
    first = batches[0][0]
    batches.begin_epoch(1)
    assert not np.array_equal(batches[0][0], first)


def test_standardised_images_are_those_of_numpy(frame: pd.DataFrame) -> None:
    plain = images_of(SliceBatches(frame, target="class")).astype(np.float64)
    given = SliceBatches(frame, target="class", standardise=True)[0][0]
    assert given.dtype == np.float32
    for image, values in zip(given, plain, strict=True):
        np.testing.assert_allclose(image, (values - values.mean()) / max(values.std(), 1.0), atol=1e-5)


def test_a_constant_slice_is_standardised_to_zeros() -> None:
    assert not standardise(np.full((2, 256, 256, 3), 9, np.uint8)).any()


def test_a_16_bit_slice_is_windowed_as_scoring_windows_it(tmp_path: Path) -> None:
    from engine.sources.read import decode_slice

    deep = np.random.default_rng(0).integers(0, 4000, (256, 256)).astype(np.uint16)
    folder = tmp_path / "patient"
    folder.mkdir()
    assert cv2.imwrite(str(folder / "a.png"), deep)
    assert cv2.imwrite(str(folder / "a_mask.png"), np.eye(256, dtype=np.uint8))
    expected = np.zeros((256, 256, 3), np.uint8)
    decode_slice((folder / "a.png").read_bytes(), expected)
    images, masks = SliceBatches(load_frame(tmp_path), target="mask")[0]
    np.testing.assert_array_equal(images[0], expected)
    assert images.max() == 255
    assert masks.sum() == 256


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    folder = tmp_path / "patient"
    folder.mkdir()
    for name in ("a.png", "a_mask.png"):
        assert cv2.imwrite(str(folder / name), np.zeros((8, 8), np.uint8))
    frame = load_frame(tmp_path)
    (folder / "a.png").unlink()
    if content is not None:
        (folder / "a.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.png"):
        SliceBatches(frame, target="class")[0]


def test_no_slices_at_all_are_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match="no slices"):
        SliceBatches(frame.iloc[:0], target="mask")
    with pytest.raises(UsageError, match="no slices"):
        SliceBatches(frame[frame["mask"] == 0], target="mask", negatives=0.0)
