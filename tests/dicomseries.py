"""DICOM series for tests: small, with a place in space and a patient whose name must appear nowhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PATIENT = "Doe^Jane"
IDENTITY = "MRN-4711"

TILT = np.deg2rad(20)
DIRECTIONS = {
    "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "feet first": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "turned in its plane": (0.0, 1.0, 0.0, -1.0, 0.0, 0.0),
    "tilted": (1.0, 0.0, 0.0, 0.0, float(np.cos(TILT)), float(np.sin(TILT))),
}


def series(
    folder: Path,
    count: int,
    directions: tuple[float, ...],
    step: float = 3.0,
    height: int = 8,
    width: int = 10,
) -> list[Path]:
    """A DICOM series of `count` files, `step` mm apart along the normal of `directions`."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    normal = np.cross(directions[:3], directions[3:])
    study, uid, frame = (generate_uid(entropy_srcs=[word]) for word in ("study", "series", "frame"))
    paths = []
    for number in range(count):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = MRImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid(
            entropy_srcs=[f"instance {number}"]
        )
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, uid, frame
        data.Modality, data.StudyDate, data.StudyTime = "MR", "20240102", "101500"
        data.PatientName, data.PatientID, data.PatientBirthDate = PATIENT, IDENTITY, "19700101"
        data.AccessionNumber, data.StudyDescription, data.InstitutionName = (
            "A-99",
            "for Jane Doe",
            "St. Elsewhere",
        )
        data.InstanceNumber = number + 1
        data.ImagePositionPatient = [float(part) for part in (-40, 25.5, 11) + normal * step * number]
        data.ImageOrientationPatient = list(directions)
        data.PixelSpacing, data.SliceThickness = [0.5, 0.75], step
        data.Rows, data.Columns, data.SamplesPerPixel = height, width, 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelData = np.full((height, width), 100 * number, np.uint16).tobytes()
        paths.append(folder / f"{number}.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    return paths
