"""Volumes for tests: NIfTI files, DICOM series, TIFFs of several pages; and where real ones lie."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

REAL = Path(os.environ.get("TUMORSCAN_VOLUMES", Path(__file__).parents[2] / "shared" / "volumes"))
"""Real MR files, read where they lie and never copied."""

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real volumes in {REAL}")

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def voxels(*shape: int, seed: int = 0, dtype: Any = np.int16, top: int = 1000) -> npt.NDArray[Any]:
    """Noise without zeros."""
    return np.random.default_rng(seed).integers(1, top, shape).astype(dtype)


def write_nifti(
    path: Path, data: npt.NDArray[Any], affine: npt.NDArray[np.float64] | None = None, **header: Any
) -> Path:
    """Write `data` [x,y,z,...] as NIfTI-1, by default in steps of 1x1x5 mm towards right, front and head."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(data, np.diag([1.0, 1.0, 5.0, 1.0]) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def dicom(
    pixels: npt.NDArray[Any],
    *,
    series: str = "1.2.3.1",
    study: str = "1.2.3",
    height: float | None = 0.0,
    instance: int = 1,
    directions: Sequence[float] = AXIAL,
    **more: Any,
) -> Any:
    """A dataset of a frame [h,w] or several [n,h,w]; `more` sets attributes, or with None deletes them."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = more.get("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4")
    meta.MediaStorageSOPInstanceUID = f"{series}.{instance}"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality = "MR"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "P4711"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.SeriesNumber, dataset.InstanceNumber = 3, instance
    dataset.SeriesDescription = "FLAIR axial"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    dataset.PixelSpacing = [1.0, 1.0]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    if height is not None:
        dataset.ImageOrientationPatient = list(directions)
        dataset.ImagePositionPatient = [0.0, 0.0, height]
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    for name, value in more.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    return dataset


def write_dicom(path: Path, dataset: Any) -> Path:
    """Write a dataset as a file with its preamble."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, count: int, *, side: int = 32, seed: int = 0, **more: Any) -> list[Path]:
    """Write slices 5 mm apart whose names say nothing of their order."""
    names = np.random.default_rng(seed).permutation(count)
    return [
        write_dicom(
            folder / f"{names[number]:03d}.dcm",
            dicom(
                voxels(side, side, seed=seed * 1000 + number, dtype=np.uint16),
                height=5.0 * number,
                instance=number + 1,
                **more,
            ),
        )
        for number in range(count)
    ]


def tiff_pages(
    pages: Sequence[npt.NDArray[Any]], *, order: str = "<", big: bool = False, subfile: Sequence[int] = ()
) -> bytes:
    """A TIFF of uncompressed pages [h,w] or [h,w,3]; `subfile` are their NewSubfileTypes."""
    pointer, counter, start = ("Q", "Q", 16) if big else ("I", "H", 8)
    mark = b"II" if order == "<" else b"MM"
    body, blocks = b"", []
    for number, page in enumerate(pages):
        data = page.astype(page.dtype.newbyteorder(order)).tobytes()
        blocks.append((number, page, start + len(body), len(data)))
        body += data + b"\0" * (len(data) % 2)
    directories = b""
    at = start + len(body)
    for number, page, offset, size in blocks:
        samples = 1 if page.ndim == 2 else page.shape[2]
        tags = {
            254: subfile[number] if subfile else 0,
            256: page.shape[1],
            257: page.shape[0],
            258: page.dtype.itemsize * 8,
            259: 1,
            262: 1 if samples == 1 else 2,
            273: offset,
            277: samples,
            278: page.shape[0],
            279: size,
            339: {"u": 1, "i": 2, "f": 3}[page.dtype.kind],
        }
        directory = struct.pack(order + counter, len(tags))
        for tag, value in sorted(tags.items()):
            field = struct.pack(order + "I", value)
            directory += struct.pack(order + "HH" + pointer, tag, 4, 1) + field.ljust(8 if big else 4, b"\0")
        at += len(directory) + struct.calcsize("=" + pointer)
        directories += directory + struct.pack(order + pointer, 0 if number == len(blocks) - 1 else at)
    header = mark + struct.pack(order + "H", 43 if big else 42)
    header += struct.pack(order + "HH", 8, 0) if big else b""
    return header + struct.pack(order + pointer, start + len(body)) + body + directories
