from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from engine.errors import UsageError
from trainer.cache import SliceCache, default_limit

IMAGE_BYTES = 256 * 256 * 3


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Three slices of noise and, last, a mask."""
    rng = np.random.default_rng(0)
    made = [tmp_path / f"{number}.png" for number in range(3)] + [tmp_path / "mask.png"]
    for path in made[:3]:
        assert cv2.imwrite(str(path), rng.integers(0, 256, (256, 256, 3)).astype(np.uint8))
    assert cv2.imwrite(str(made[3]), rng.integers(0, 2, (100, 300)).astype(np.uint8) * 255)
    return [str(path) for path in made]


def test_what_is_kept_is_what_was_read(paths: list[str]) -> None:
    cache, bare = SliceCache(1 << 30), SliceCache()
    for _ in range(2):
        for path in paths[:3]:
            np.testing.assert_array_equal(cache.image(path), bare.image(path))
        np.testing.assert_array_equal(cache.mask(paths[3]), bare.mask(paths[3]))
    assert cache.held == 3 * IMAGE_BYTES + 256 * 256 // 8
    assert bare.held == 0


def test_a_kept_slice_is_read_once(paths: list[str]) -> None:
    cache = SliceCache(1 << 30)
    before = cache.image(paths[0]), cache.mask(paths[3])
    for path in paths:
        Path(path).unlink()
    np.testing.assert_array_equal(cache.image(paths[0]), before[0])
    np.testing.assert_array_equal(cache.mask(paths[3]), before[1])
    with pytest.raises(UsageError, match="cannot read"):
        cache.image(paths[1])


def test_no_more_is_kept_than_there_is_room_for_and_the_rest_is_read(paths: list[str]) -> None:
    cache = SliceCache(2 * IMAGE_BYTES)
    for path in (*paths[:3], *paths[:3]):
        np.testing.assert_array_equal(cache.image(path), SliceCache().image(path))
    assert cache.held == 2 * IMAGE_BYTES


def test_a_kept_slice_cannot_be_changed_by_who_got_it(paths: list[str]) -> None:
    cache = SliceCache(1 << 30)
    cache.image(paths[0])
    with pytest.raises(ValueError, match="read-only"):
        cache.image(paths[0])[:] = 0


def test_the_default_is_a_part_of_the_free_memory() -> None:
    assert 0 < default_limit() < 1 << 50
