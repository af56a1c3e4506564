"""The endings of files that are read, in lower case."""

from __future__ import annotations

from typing import Final

PICTURES: Final = (b".tif", b".tiff", b".png", b".jpg", b".jpeg", b".webp")
"""Of files that are a slice by themselves."""
NIFTI: Final = (b".nii", b".nii.gz")
DICOM: Final = (b".dcm", b".dicom", b".ima")
