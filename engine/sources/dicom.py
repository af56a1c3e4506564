"""DICOM headers: what a file says of itself, and where its slices belong.

Patient names and ids are looked at for one reason: to keep them out of the name of a volume, should somebody
have written one into the description of a series.
Format: DICOM PS3.3 (image plane C.7.6.2, VOI LUT C.11.2, functional groups C.7.6.16) and PS3.10.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from engine.errors import SliceError
from engine.sources import endings
from engine.sources.headers import check_size, refused, truncated
from engine.sources.volumes import Window

if TYPE_CHECKING:
    from pydicom import Dataset

ENDINGS: Final = endings.DICOM
MAGIC: Final = b"DICM"
MAGIC_AT: Final = 128
MODALITIES: Final = ("MR", "OT", "SC", "")
"""MR, and what secondary captures and anonymised files say; CT and others are not what the models know."""

_MAX_FRAMES: Final = 100_000
_DIRECTORY: Final = "1.2.840.10008.1.3.10"
_SEGMENTATION: Final = "1.2.840.10008.5.1.4.1.1.66.4"
_SHORTEST_NAME: Final = 3
_LONGEST_DESCRIPTION: Final = 40
_PLANES: Final = ("sagittal", "coronal", "axial")
_TAGS: Final = [
    "SOPClassUID", "ImageType", "Modality", "PatientName", "PatientID", "StudyInstanceUID",
    "SeriesInstanceUID", "SeriesDescription", "ProtocolName", "SeriesNumber", "InstanceNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SamplesPerPixel", "NumberOfFrames",
    "Rows", "Columns", "WindowCenter", "WindowWidth", "VOILUTFunction", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


class NoSliceError(Exception):
    """A file that is no slice and is passed over: a DICOMDIR."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where one frame lies: `position` of its first pixel and `directions` along a row and down a column.

    Millimetres towards the patient's left, back and head; None where the file does not say. `spacing` is that
    of rows and of columns.
    """

    position: tuple[float, float, float] | None
    directions: tuple[float, ...] | None
    spacing: tuple[float, float] | None

    @property
    def normal(self) -> tuple[float, float, float] | None:
        """The unit vector across the frame, turned so that its largest part is positive."""
        if self.directions is None:
            return None
        a, b = self.directions[:3], self.directions[3:]
        across = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
        length = math.hypot(*across)
        if not length > 1e-3:
            return None
        sign = math.copysign(length, max(across, key=abs))
        return across[0] / sign, across[1] / sign, across[2] / sign

    @property
    def plane(self) -> str:
        """axial, sagittal, coronal, or "" where the file does not say."""
        normal = self.normal
        return "" if normal is None else _PLANES[max(range(3), key=lambda axis: abs(normal[axis]))]

    @property
    def height(self) -> float | None:
        """Millimetres along the normal."""
        normal = self.normal
        if normal is None or self.position is None:
            return None
        return sum(part * along for part, along in zip(self.position, normal, strict=True))


@dataclass(frozen=True, slots=True)
class Header:
    """What discovery needs of a file.

    `label` names its series in a volume's name: its description, if that gives no patient away, and a hash of
    its UID. `study` and `series` are hashes of UIDs. `window` is the one that all frames share.
    """

    study: str
    series: str
    label: str
    description: str
    number: int
    instance: int
    height: int
    width: int
    frames: tuple[Frame, ...]
    window: Window | None

    @property
    def key(self) -> bytes:
        """Sorts files of a folder: by series, then by place along the normal, then by instance number."""
        place = self.frames[0].height
        return b"".join(
            (
                struct.pack(">Q", _biased(self.number)),
                bytes.fromhex(self.series),
                _sortable(math.inf if place is None else round(place, 3)),
                struct.pack(">Q", _biased(self.instance)),
            )
        )


def read_header(file: BinaryIO, *, whatever_it_starts_with: bool = False) -> Header:
    """Read what stands before the pixels. `file` has a `MAGIC`, or is to be believed without one.

    Raises NoSliceError for a DICOMDIR; SliceError, stage `decode`: `empty`, `truncated`, `not_an_image`,
    `dicom_object`, `modality`, `orientation`, `mosaic`, `too_large`, `channels`, `decode`; OSError.
    """
    return describe(parse(file, force=whatever_it_starts_with, pixels=False))


def parse(file: BinaryIO, *, force: bool, pixels: bool) -> Dataset:
    """The dataset in `file`, quietly. Raises SliceError and OSError."""
    import warnings

    import pydicom
    from pydicom.errors import InvalidDicomError

    # Values are looked at one by one below; pydicom would warn of each, and in the middle of a progress bar.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    tags: list[str] | None = None if pixels else _TAGS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pydicom.dcmread(file, stop_before_pixels=not pixels, force=force, specific_tags=tags)
    except InvalidDicomError:
        raise refused("not_an_image", "not a DICOM file, whatever its name says") from None
    except EOFError:
        raise truncated() from None
    except OSError:
        raise
    except Exception as error:  # a damaged file takes pydicom to many places
        raise refused("decode", f"its header is damaged ({type(error).__name__}: {error})") from None


def describe(dataset: Dataset) -> Header:
    """What discovery needs of `dataset`. Raises as `read_header`."""
    try:
        return _describe(dataset)
    except (SliceError, NoSliceError):
        raise
    except Exception as error:
        raise refused("decode", f"its header is damaged ({type(error).__name__}: {error})") from None


def uneven(heights: Iterable[float | None]) -> str:
    """What is wrong with the places of a volume's slices, in millimetres, as a few words; "" for nothing."""
    known = sorted({round(height, 2) for height in heights if height is not None})
    steps = [after - before for before, after in pairwise(known)]
    if len(steps) < 2:
        return ""
    usual = sorted(steps)[len(steps) // 2]
    missing = sum(round(step / usual) - 1 for step in steps if abs(step / usual - round(step / usual)) < 0.1)
    if all(abs(step / usual - round(step / usual)) < 0.1 for step in steps):
        return f"{missing} of its slices are missing" if missing else ""
    return f"its slices are {min(steps):.3g} to {max(steps):.3g} mm apart"


def hashed(text: str) -> str:
    """Sixteen hexadecimal digits that stand for a UID."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def frame_window(dataset: Any, shared: Any, own: Any) -> Window | None:
    """A frame's own window, in values after the rescale."""
    place = _group(own, shared, "FrameVOILUTSequence") or dataset
    centre, width = _numbers(place.get("WindowCenter")), _numbers(place.get("WindowWidth"))
    if not centre or not width or not (math.isfinite(centre[0]) and 0 < width[0] < math.inf):
        return None
    if str(place.get("VOILUTFunction", "LINEAR")) == "LINEAR":  # C.11.2.1.2.1
        half = max(width[0] - 1.0, 0.0) / 2
        return Window(centre[0] - 0.5 - half, centre[0] - 0.5 + half)
    return Window(centre[0] - width[0] / 2, centre[0] + width[0] / 2)


def functional_groups(dataset: Any) -> tuple[Any, Sequence[Any]]:
    """What the frames of an enhanced file share, and what each has by itself (empty in other files)."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
    return shared[0], dataset.get("PerFrameFunctionalGroupsSequence") or ()


def _describe(dataset: Dataset) -> Header:
    kind = str(dataset.get("SOPClassUID", dataset.file_meta.get("MediaStorageSOPClassUID", "")))
    if kind == _DIRECTORY:
        raise NoSliceError
    height, width = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if kind == _SEGMENTATION:
        raise refused("dicom_object", "a segmentation: masks, not images")
    if height == 0 or width == 0:
        if not kind and "SeriesInstanceUID" not in dataset:
            raise refused("not_an_image", "not a DICOM file, whatever its name says")
        raise refused("dicom_object", f"{_kind_name(kind)} without an image: nothing in it to score")
    check_size(height, width)
    modality = str(dataset.get("Modality") or "")
    if modality not in MODALITIES:
        raise refused("modality", f"an image of modality {modality[:16]}: the models know MR only")
    if "MOSAIC" in [str(word) for word in _several(dataset.get("ImageType"))]:
        raise refused(
            "mosaic", "a mosaic of many slices in one picture: convert the series to NIfTI, as dcm2niix does"
        )
    if int(dataset.get("SamplesPerPixel") or 1) not in (1, 3):
        raise refused("channels", f"{dataset.SamplesPerPixel} channels: a slice has 1 or 3")
    frames, windows = _frames(dataset)
    planes = {frame.plane for frame in frames} - {"", "axial"}
    if planes:
        raise refused(
            "orientation",
            f"{' and '.join(sorted(planes))}: the models know axial slices only; convert a series of thin "
            "slices to NIfTI, whose axial planes are scored",
        )
    series = str(dataset.get("SeriesInstanceUID") or "")
    description = _description(dataset)
    return Header(
        study=hashed(str(dataset.get("StudyInstanceUID") or "")),
        series=hashed(series),
        label=f"{description}-{hashed(series)[:8]}" if description else f"series-{hashed(series)[:8]}",
        description=str(dataset.get("SeriesDescription") or dataset.get("ProtocolName") or ""),
        number=_whole(dataset.get("SeriesNumber")),
        instance=_whole(dataset.get("InstanceNumber")),
        height=height,
        width=width,
        frames=frames,
        window=windows.pop() if len(windows) == 1 else None,
    )


def _frames(dataset: Dataset) -> tuple[tuple[Frame, ...], set[Window | None]]:
    count = _whole(dataset.get("NumberOfFrames")) or 1
    if not 1 <= count <= _MAX_FRAMES:
        raise refused("too_large", f"{count:,} frames: at most {_MAX_FRAMES:,} are read")
    shared, each = functional_groups(dataset)
    owns = [each[place] if place < len(each) else None for place in range(count)] if each else [None]
    frames = [_frame(dataset, shared, own) for own in owns]
    windows = {frame_window(dataset, shared, own) for own in owns}
    return tuple(frames if each else frames * count), windows


def _frame(dataset: Any, shared: Any, own: Any) -> Frame:
    position = _group(own, shared, "PlanePositionSequence") or dataset
    orientation = _group(own, shared, "PlaneOrientationSequence") or dataset
    measures = _group(own, shared, "PixelMeasuresSequence") or dataset
    at = _numbers(position.get("ImagePositionPatient"))
    along = _numbers(orientation.get("ImageOrientationPatient"))
    apart = _numbers(measures.get("PixelSpacing"))
    return Frame(
        position=(at[0], at[1], at[2]) if len(at) == 3 else None,
        directions=tuple(along) if len(along) == 6 else None,
        spacing=(apart[0], apart[1]) if len(apart) == 2 and min(apart) > 0 else None,
    )


def _group(own: Any, shared: Any, name: str) -> Any:
    """The macro `name` of a frame: its own, else the one that frames share; None where there is neither."""
    for groups in (own, shared):
        found = groups.get(name) if groups is not None else None
        if found:
            return found[0]
    return None


def _description(dataset: Dataset) -> str:
    """The series' description as part of a name; "" where a patient's name or id is in it."""
    text = str(dataset.get("SeriesDescription") or "")
    names = re.split(r"[^\w]+", f"{dataset.get('PatientName') or ''} {dataset.get('PatientID') or ''}")
    private = [name.casefold() for name in names if len(name) >= _SHORTEST_NAME]
    if any(name in text.casefold() for name in private):
        return ""
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_.")[:_LONGEST_DESCRIPTION]


def _kind_name(kind: str) -> str:
    from pydicom.uid import UID

    name = UID(kind).name if kind else "an object of no kind"
    return name if name != kind else "an object of a kind that is not known"


def _several(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, str) or not hasattr(value, "__iter__") else value


def _numbers(value: Any) -> list[float]:
    """The finite numbers of an attribute; [] where it is missing or is no number."""
    if value is None or value == "":
        return []
    try:
        numbers = [float(part) for part in _several(value)]
    except (TypeError, ValueError):
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _whole(value: Any) -> int:
    numbers = _numbers(value)
    return int(numbers[0]) if numbers else 0


def _biased(number: int) -> int:
    """A number of 64 bits that sorts, without its sign, as it does with it."""
    return max(-(2**63), min(2**63 - 1, number)) + 2**63


def _sortable(value: float) -> bytes:
    """Eight bytes that sort as `value` does."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", value + 0.0))
    return struct.pack(">Q", bits ^ (2**64 - 1 if bits >> 63 else 2**63))
