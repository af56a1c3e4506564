"""The pixels of a DICOM frame, as the models see them: decoded, rescaled, windowed, never inverted.

Compressed syntaxes are decoded by python-gdcm (JPEG, JPEG-LS, JPEG 2000) and pydicom itself (RLE).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from engine.sources.dicom import Header, describe, functional_groups
from engine.sources.headers import refused, truncated
from engine.sources.volumes import Window
from engine.sources.windows import Tally, apply, window

if TYPE_CHECKING:
    from pydicom import Dataset

_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True, slots=True)
class Pixels:
    """An open file: its header, and its frames on demand."""

    dataset: Dataset
    header: Header

    @classmethod
    def of(cls, dataset: Dataset) -> Pixels:
        """The pixels of a whole file. Raises SliceError: not one to score, or no decoder for it here."""
        header = describe(dataset)
        if not any(name in dataset for name in _PIXELS):
            raise truncated()
        _expect_decoder(dataset)
        return cls(dataset, header)

    def stored(self, frame: int) -> npt.NDArray[Any]:
        """A frame as it is stored, [h,w], or [h,w,3] RGB. Raises SliceError: `truncated`, `decode`."""
        from pydicom.pixels import apply_color_lut, pixel_array

        if frame >= len(self.header.frames):
            raise refused("decode", f"it has no frame {frame}: it changed since it was found")
        many = int(self.dataset.get("NumberOfFrames") or 1) > 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image: npt.NDArray[Any] = pixel_array(self.dataset, index=frame if many else 0)
                if self.dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
                    image = apply_color_lut(image, self.dataset)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file takes pydicom and its decoders to many places
            if "less than" in str(error) or "insufficient" in str(error).lower():
                raise truncated() from None
            said = " ".join(str(error).split())[:200]
            raise refused("decode", f"the decoder refuses it, the file is damaged ({said})") from None
        expected = (self.header.height, self.header.width)
        if image.shape[:2] != expected or image.ndim > 3:
            raise refused("decode", "its pixels are not what its header says: the file is damaged")
        return image

    def values(self, frame: int) -> npt.NDArray[np.float64]:
        """A frame of one channel in the units of its rescale, [h,w]."""
        slope, intercept = self.rescale(frame)
        return self.stored(frame).astype(np.float64) * slope + intercept

    def count(self, tally: Tally) -> None:
        """Add all frames to the tally of their volume, but those that need no window: 8 bits, RGB."""
        for frame in range(len(self.header.frames)):
            image = self.stored(frame)
            if image.ndim == 2 and image.dtype != np.uint8:
                tally.add(image, *self.rescale(frame))

    def image(self, frame: int, shared: Window | None) -> npt.NDArray[np.uint8]:
        """A frame in 0..255, [h,w] or [h,w,3]; `shared` is its volume's window, None where all is zero."""
        image = self.stored(frame)
        if image.ndim == 3:
            return image if image.dtype == np.uint8 else window(image)
        if image.dtype != np.uint8:
            slope, intercept = self.rescale(frame)
            values = image.astype(np.float64) * slope + intercept
            image = np.zeros(image.shape, np.uint8) if shared is None else apply(shared, values)
        return np.invert(image) if self.inverted else image

    @property
    def inverted(self) -> bool:
        """Whether the smallest value is meant to be shown white."""
        return bool(self.dataset.get("PhotometricInterpretation") == "MONOCHROME1")

    def rescale(self, frame: int) -> tuple[float, float]:
        """The slope and intercept of a frame: its own, those that frames share, or the file's."""
        shared, each = functional_groups(self.dataset)
        for groups in (each[frame] if frame < len(each) else None, shared):
            found = groups.get("PixelValueTransformationSequence") if groups is not None else None
            if found:
                return _rescale(found[0])
        return _rescale(self.dataset)


def _rescale(place: Any) -> tuple[float, float]:
    try:
        slope = float(place.get("RescaleSlope") or 1.0)
        intercept = float(place.get("RescaleIntercept") or 0.0)
    except (TypeError, ValueError):
        raise refused("decode", "its rescale is no number: the file is damaged") from None
    if not np.isfinite([slope, intercept]).all():
        raise refused("decode", "its rescale is no number: the file is damaged")
    return slope, intercept


def _expect_decoder(dataset: Dataset) -> None:
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        return  # a file without that part is taken for the uncompressed default
    try:
        decoder = get_decoder(syntax)
        missing = not decoder.is_available
    except NotImplementedError:
        missing = True
    if missing:
        raise refused("unsupported", f"compressed as {syntax.name}, for which there is no decoder here")
