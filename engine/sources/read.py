"""One slice from one file: bytes in, 256x256 RGB out.

TIFF, PNG, JPEG and WebP are told by their first bytes, never by the name. Pixels are taken as they are
stored: an EXIF orientation is ignored (true masks are drawn on the stored pixels), alpha is dropped without
blending, one channel becomes three equal ones. OpenCV decodes with IMREAD_IGNORE_ORIENTATION; its decoder of
TIFF would rotate all the same (see tiff.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.sources.geometry import fit
from engine.sources.headers import (
    JPEG_SIGNATURE,
    PNG_SIGNATURE,
    Header,
    read_jpeg_header,
    read_png_header,
    read_webp_header,
    refused,
    truncated,
)
from engine.sources.tiff import TIFF_SIGNATURES, read_tiff
from engine.sources.windows import window


def decode_slice(data: bytes, out: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Decode `data`, one whole file, into `out` [256,256,3] RGB; return the source's (height, width).

    8-bit values are taken as they are; all others are windowed to 8 bits (see `window`).
    Raises SliceError, stage `decode`: `empty`, `not_an_image`, `truncated`, `too_large`, `multi_page`,
    `channels`, `unsupported`, `decode`; `out` then holds anything.
    """
    image = _decode(data)
    if image.dtype != np.uint8:
        image = window(image)
    height, width = image.shape[:2]
    fit(image if image.ndim == 3 else np.repeat(image[:, :, np.newaxis], 3, axis=2), out)
    return height, width


def _decode(data: bytes) -> npt.NDArray[Any]:
    if not data:
        raise refused("empty", "a file of zero bytes: copy it again from its source")
    if data.startswith(TIFF_SIGNATURES):
        return read_tiff(data)
    if data.startswith(PNG_SIGNATURE):
        return _decode_by_opencv(data, read_png_header(data))
    if data.startswith(JPEG_SIGNATURE):
        return _decode_by_opencv(data, read_jpeg_header(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _decode_by_opencv(data, read_webp_header(data))
    if any(signature.startswith(data) for signature in (*TIFF_SIGNATURES, PNG_SIGNATURE, JPEG_SIGNATURE)):
        raise truncated()
    raise refused("not_an_image", "not a TIFF, PNG, JPEG or WebP image, whatever its name says")


def _decode_by_opencv(data: bytes, header: Header) -> npt.NDArray[Any]:
    import cv2

    colour = cv2.IMREAD_GRAYSCALE if header.grey else cv2.IMREAD_COLOR_RGB
    flags = colour | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    image: npt.NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise refused("decode", "the decoder refuses it, the file is damaged: copy it again from its source")
    if image.shape[:2] != (header.height, header.width):
        raise refused("decode", "its size is not what its header says: the file is damaged")
    return image
