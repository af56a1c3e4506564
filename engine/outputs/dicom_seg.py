"""A volume's mask as a DICOM segmentation object (PS3.3 A.51), through highdicom.

It is made from a copy of the source's header that has only what places it: UIDs, geometry and the study's
date. So whatever else the source says, of its patient above all, cannot come into it. Times are the study's
and UIDs follow from the source and the mask: the same mask gives the same bytes.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import engine
from engine.errors import MachineError
from engine.outputs.atomic import replacing

SERIES_NUMBER: Final = 9001
_UIDS: Final = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
_STUDY: Final = ("StudyDate", "StudyTime", "Manufacturer", "Modality")
_PATIENT: Final = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "ReferringPhysicianName",
)  # fmt: skip
"""Kept when asked for, else empty. They have to be there."""
_NO_DATE: Final = "19000101"
_NO_TIME: Final = "000000"
_THICKNESS: Final = 1.0
"""Millimetres, where neither a header nor a neighbour tells."""


@dataclass(frozen=True, slots=True)
class Planes:
    """Where slices of one direction lie, in millimetres towards the patient's left, back and head.

    `positions` [n,3] are of their first pixels, `directions` those along a row and down a column, `spacing`
    that of rows and of columns, `step` from slice to slice (None of a single slice).
    """

    positions: Sequence[tuple[float, float, float]]
    directions: tuple[float, ...]
    spacing: tuple[float, float]
    step: float | None


def expect_seg() -> None:
    """Raise MachineError where no segmentation object can be written."""
    if find_spec("highdicom") is None:
        raise MachineError(
            "masks of DICOM series need highdicom, which is not installed: pip install 'tumorscan[medical]', "
            "then run the same command"
        )


def write_dicom_seg(
    path: Path,
    mask: npt.NDArray[np.uint8],
    sources: Sequence[bytes],
    planes: Planes,
    *,
    keep_patient: bool = False,
    rename: Callable[[str], str] | None = None,
) -> None:
    """Write `mask` [n,h,w] of 0/1, with a voxel set, as a segmentation object of one segment at `path`.

    `sources` are the paths of the slices' files in order, or of the one file that holds all of them as its
    frames. `keep_patient` copies the patient's name and id, which stay empty otherwise. `rename` gives other
    UIDs for those of the sources, and leaves the study's date out.

    Raises OSError; ValueError for sources that highdicom makes no segmentation of.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    headers = [_header(source, planes, place, keep_patient, rename) for place, source in enumerate(sources)]
    seed = hashlib.sha256(np.packbits(mask).tobytes() + "".join(h.SOPInstanceUID for h in headers).encode())
    algorithm = hd.AlgorithmIdentificationSequence(
        "tumorscan", family=codes.cid7162.ArtificialIntelligence, version=engine.__version__
    )
    tumour = hd.seg.SegmentDescription(
        1,
        "Tumour",
        codes.SCT.MorphologicallyAbnormalStructure,
        codes.SCT.Neoplasm,
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are not as names should be
            made = hd.seg.Segmentation(
                headers,
                mask,
                hd.seg.SegmentationTypeValues.BINARY,
                [tumour],
                series_instance_uid=_uid(seed.hexdigest(), "series"),
                series_number=SERIES_NUMBER,
                sop_instance_uid=_uid(seed.hexdigest(), "instance"),
                instance_number=1,
                manufacturer="tumorscan",
                manufacturer_model_name="tumorscan",
                software_versions=engine.__version__,
                device_serial_number="0",
                content_label="TUMOUR",
                content_description="Found by tumorscan; research only",
            )
            _settle(made, headers[0], _uid(seed.hexdigest(), "dimensions"))
            with replacing(path, durable=True) as file:
                made.save_as(file)
    except (AttributeError, KeyError, TypeError, IndexError) as error:  # a header that lacks what it needs
        raise ValueError(str(error)) from error


def _header(
    source: bytes, planes: Planes, place: int, keep_patient: bool, rename: Callable[[str], str] | None
) -> Any:
    """What highdicom is told of a source: what places it, and nothing that is not named here."""
    from pydicom import Dataset, dcmread

    wanted = [
        "SOPClassUID",
        "Rows",
        "Columns",
        "NumberOfFrames",
        "SliceThickness",
        *_UIDS,
        *_STUDY,
        *_PATIENT,
    ]
    with open(source, "rb") as file:
        theirs = dcmread(file, stop_before_pixels=True, force=True, specific_tags=wanted)
    header = Dataset()
    header.file_meta = theirs.file_meta
    for name in ("SOPClassUID", "Rows", "Columns"):
        setattr(header, name, theirs[name].value)
    for name in _UIDS:
        uid = str(theirs.get(name) or _uid(str(theirs.SOPInstanceUID), name))
        setattr(header, name, rename(uid) if rename else uid)
    for name in _STUDY:
        setattr(header, name, "" if rename and name.startswith("Study") else theirs.get(name) or "")
    for name in _PATIENT:
        setattr(header, name, (theirs.get(name) or "") if keep_patient else "")
    header.ImageOrientationPatient = list(planes.directions)
    header.PixelSpacing = list(planes.spacing)
    header.SliceThickness = theirs.get("SliceThickness") or planes.step or _THICKNESS
    header.SpacingBetweenSlices = planes.step
    if "NumberOfFrames" in theirs:
        _set_frames(header, planes)
    else:
        header.ImagePositionPatient = list(planes.positions[place])
    return header


def _set_frames(header: Any, planes: Planes) -> None:
    """Place the frames of an enhanced header."""
    import highdicom as hd
    from pydicom import Dataset

    patient = hd.CoordinateSystemNames.PATIENT
    shared = Dataset()
    thickness = planes.step or _THICKNESS
    shared.PixelMeasuresSequence = hd.PixelMeasuresSequence(planes.spacing, thickness, planes.step)
    shared.PlaneOrientationSequence = hd.PlaneOrientationSequence(patient, planes.directions)
    header.SharedFunctionalGroupsSequence = [shared]
    each = []
    for position in planes.positions:
        own = Dataset()
        own.PlanePositionSequence = hd.PlanePositionSequence(patient, position)
        each.append(own)
    header.PerFrameFunctionalGroupsSequence = each
    header.NumberOfFrames = len(each)


def _settle(made: Any, header: Any, dimensions: str) -> None:
    """Give what highdicom draws or takes from the clock values that follow from the source."""
    made.InstanceCreationDate = made.ContentDate = header.StudyDate or _NO_DATE
    made.InstanceCreationTime = made.ContentTime = header.StudyTime or _NO_TIME
    for equipment in made.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in equipment:
            del equipment.ContributionDateTime
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions


def _uid(*words: str) -> str:
    """A UID that stands for `words` (PS3.5 B.2)."""
    return f"2.25.{int.from_bytes(hashlib.sha256(' '.join(words).encode()).digest()[:16], 'big')}"
