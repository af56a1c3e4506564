"""Volumes in the decode ring: opened once, by one worker; a volume that ends its worker costs itself only."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from engine import ring as ring_module
from engine.ring import Ring
from engine.sources.discovery import Discovery, SourceFile
from engine.sources.entries import pages_of
from engine.sources.reader import VolumeReader
from tests.badfiles import tiff
from tests.integration.test_ring import run, wait_until, workers
from tests.volumes import tiff_pages, voxels, write_nifti, write_series

pytest.importorskip("nibabel")
pytest.importorskip("pydicom")


def slices_below(folder: Path) -> list[SourceFile]:
    return [each for each in Discovery([str(folder)], None, None) if isinstance(each, SourceFile)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[SourceFile]:
    """Two NIfTI files, two DICOM series and pictures between them: 60 slices."""
    folder = tmp_path_factory.mktemp("mixed")
    write_nifti(folder / "a.nii.gz", voxels(20, 24, 17))
    (folder / "b.tif").write_bytes(tiff(30, 20))
    write_nifti(folder / "c.nii", voxels(20, 24, 19))
    (folder / "d.tif").write_bytes(tiff(20, 30))
    write_series(folder / "e", 11)
    write_series(folder / "e2", 11, series="1.2.9")
    return slices_below(folder)


def test_slices_are_those_that_a_reader_gives_whoever_decodes_them(mixed: list[SourceFile]) -> None:
    assert len(mixed) == 60
    reader, expected = VolumeReader(), np.zeros((256, 256, 3), np.uint8)
    with Ring(blocks=3, block_size=7, workers=2, timeout_s=60) as ring:
        for piece, image in run(ring, mixed, 7):
            assert piece.failure is None
            assert piece.index == piece.file.slice
            assert (piece.height, piece.width) == reader.decode(piece.file, expected)
            assert np.array_equal(image, expected)


def test_one_worker_opens_a_volume_and_others_do_not_wait_for_it(
    mixed: list[SourceFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, SourceFile]] = []
    hand_out = Ring._hand_out

    def noted(ring: Ring, chunk: ring_module._Chunk, worker: ring_module._Worker) -> bool:
        given.append((worker.number, ring._submitted[chunk.block].files[chunk.first]))
        return hand_out(ring, chunk, worker)

    monkeypatch.setattr(Ring, "_hand_out", noted)
    with Ring(blocks=4, block_size=16, workers=3, timeout_s=60) as ring:
        assert len(list(run(ring, mixed, 16))) == 60
    holders: dict[int, set[int]] = {}
    for number, file in given:
        if file.source is not None:
            holders.setdefault(id(file.source), set()).add(number)
    assert len(holders) == 4
    assert all(len(numbers) == 1 for numbers in holders.values())


def test_a_picture_with_pages_is_told_and_its_pages_are_slices(tmp_path: Path) -> None:
    pages = [voxels(9, 7, seed=n, dtype=np.uint8, top=255) for n in range(5)]
    (tmp_path / "a.tif").write_bytes(tiff_pages(pages))
    (file,) = slices_below(tmp_path)
    with Ring(blocks=1, block_size=8, workers=1, timeout_s=60) as ring:
        ((piece, image),) = run(ring, [file], 8)
        assert piece.pages == 5
        assert piece.failure is not None
        assert not image.any()
        found = list(run(ring, pages_of(piece.file, piece.pages), 8))
    assert [piece.index for piece, _ in found] == [0, 1, 2, 3, 4]
    assert all((piece.height, piece.width, piece.failure) == (9, 7, None) for piece, _ in found)
    assert len({image.tobytes() for _, image in found}) == 5


def test_names_of_a_long_series_reach_the_worker(tmp_path: Path) -> None:
    paths = write_series(tmp_path / ("x" * 200), 2, side=8)
    folder = paths[0].parent
    for number in range(150):
        os.link(paths[0], folder / f"{'y' * 200}{number}.dcm")
    files = slices_below(tmp_path)
    assert len(files) == 152
    assert files[0].source is not None
    assert len(files[0].source.recipe) > 64 * 1024
    with Ring(blocks=1, block_size=16, workers=1, timeout_s=60) as ring:
        assert all(piece.failure is None for piece, _ in run(ring, files[:16], 16))


def test_a_volume_that_hangs_while_it_is_opened_fails_whole_and_at_once(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "hangs", 20, side=8)
    write_series(tmp_path / "sound", 10, side=8, series="1.2.9")
    files = slices_below(tmp_path)
    # What was a file is a pipe by the time that the window is taken of it; a reader that did not look would
    # wait for ever, so a worker is stopped instead.
    with Ring(blocks=4, block_size=8, workers=1, timeout_s=2) as ring:
        wait_until(lambda: len(workers()) == 1)
        block = ring.acquire(5)
        assert block is not None
        (worker,) = workers()
        wait_until(lambda: any(each.ready for each in ring._workers))
        worker.send_signal(signal.SIGSTOP)
        ring.submit(block, files[:8])
        ring._mapped().control[0, ring_module.TICKET] = ring._workers[0].chunks[0].ticket
        ring._mapped().control[0, ring_module.STARTED_NS] = time.monotonic_ns()
        ring._mapped().control[0, ring_module.IS_OPENING] = 1
        done = ring.completed(20)
        assert done is not None
        assert {piece.failure.code for piece in done.slices if piece.failure} == {"timeout"}
        assert len([piece for piece in done.slices if piece.failure]) == 8
        ring.release(done.block)
        begun = time.monotonic()
        rest = list(run(ring, files[8:], 8))
    assert time.monotonic() - begun < 30
    failed = {piece.file.path for piece, _ in rest if piece.failure}
    assert failed == {file.path for file in files[8:20]}
    assert len(paths) == 20
