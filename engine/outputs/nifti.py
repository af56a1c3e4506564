"""A volume's mask as NIfTI, on the grid of the file that it was found in.

The header's size, steps, units and both transforms are the source's own, bit for bit; nothing else of it is
taken over, since descriptions and extensions may name a patient.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.outputs.atomic import replacing

_HEADERS: Final = {348: "Nifti1Header", 540: "Nifti2Header"}
_PLACE: Final = (
    "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
_STEPS: Final = slice(0, 4)  # of pixdim: qfac, and millimetres along the three axes
_EXTENSION_FLAG: Final = bytes(4)
_GZIP: Final = b"\x1f\x8b"
_EITHER_WRAPPER: Final = zlib.MAX_WBITS | 16


def write_nifti_mask(path: Path, mask: npt.NDArray[np.uint8], start: bytes) -> None:
    """Write `mask`, of 0/1, as a gzipped NIfTI at `path`; its source, of that shape, begins with `start`.

    The same mask gives the same bytes. Raises OSError; ValueError for a `start` of no NIfTI file.
    """
    theirs = _header(start)
    header = type(theirs)()  # little-endian
    for name in _PLACE:
        header[name] = theirs[name]
    header["pixdim"][_STEPS] = theirs["pixdim"][_STEPS]
    header.set_data_dtype(np.uint8)
    header.set_data_shape(mask.shape)
    header["vox_offset"] = len(header.binaryblock) + len(_EXTENSION_FLAG)
    header["cal_max"] = 1
    with (
        replacing(path, durable=True) as file,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed,
    ):
        packed.write(header.binaryblock + _EXTENSION_FLAG)
        packed.write(mask.tobytes(order="F"))


def _header(start: bytes) -> Any:
    import nibabel

    if start.startswith(_GZIP):
        start = zlib.decompressobj(_EITHER_WRAPPER).decompress(start, max(_HEADERS))
    for endianness in ("<", ">"):
        length = int(np.frombuffer(start.ljust(4, b"\0"), f"{endianness}i4", 1)[0])
        if length in _HEADERS and len(start) >= length:
            kind: Any = getattr(nibabel, _HEADERS[length])
            return kind(start[:length], endianness=endianness, check=False)
    raise ValueError("not a NIfTI file")
