"""DICOM headers and pixels: series, places, windows, what is refused, and that no patient is named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import SliceError
from engine.sources import dicom as headers
from engine.sources.dicom import NoSliceError, describe, parse, read_header, uneven
from engine.sources.dicom_pixels import Pixels
from engine.sources.volumes import Window
from engine.sources.windows import apply
from tests.volumes import AXIAL, REAL, SAGITTAL, dicom, needs_real, voxels, write_dicom

pydicom = pytest.importorskip("pydicom")

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
"""Files of many makers and syntaxes, which pydicom installs."""

PICTURE = voxels(6, 5, dtype=np.uint16)
OBLIQUE = (1.0, 0.0, 0.0, 0.0, 0.866, -0.5)


def code_of(dataset: Any) -> str:
    with pytest.raises(SliceError) as caught:
        describe(dataset)
    return caught.value.failure.code


def opened(path: Path) -> Any:
    data = path.read_bytes()
    force = not data[headers.MAGIC_AT :].startswith(headers.MAGIC)
    return parse(io.BytesIO(data), force=force, pixels=True)


def test_files_sort_by_place_then_by_instance_and_whatever_comes_between() -> None:
    made = [
        dicom(PICTURE, height=height, instance=instance)
        for height, instance in (
            (-7.5, 9),
            (-7.5, 10),
            (-2.0, 1),
            (0.0, 300),
            (1e-3, 2),
            (12.0, 4),
            (110.0, 3),
        )
    ]
    keys = [describe(dataset).key for dataset in made]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    assert len({key[:16] for key in keys}) == 1


def test_files_that_say_not_where_they_lie_sort_by_instance() -> None:
    keys = [describe(dicom(PICTURE, height=None, instance=number)).key for number in (1, 2, 10, 100)]
    assert keys == sorted(keys)


def test_series_sort_by_their_number() -> None:
    keys = [describe(dicom(PICTURE, series=f"9.{n}", SeriesNumber=n)).key for n in (1, 2, 10)]
    assert keys == sorted(keys)


@pytest.mark.parametrize("directions", [AXIAL, (-1.0, 0, 0, 0, 1, 0), (1.0, 0, 0, 0, -1, 0), OBLIQUE])
def test_heights_count_towards_the_head_whatever_way_rows_run(directions: tuple[float, ...]) -> None:
    low, high = (describe(dicom(PICTURE, height=h, directions=directions)).frames[0] for h in (-40.0, 40.0))
    assert low.height is not None
    assert high.height is not None
    assert low.height < high.height
    assert low.plane == "axial"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"directions": SAGITTAL}, "orientation"),
        ({"directions": (1.0, 0, 0, 0, 0, -1)}, "orientation"),
        ({"Modality": "CT"}, "modality"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "mosaic"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "Rows": None}, "dicom_object"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33", "Rows": None}, "dicom_object"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "dicom_object"),
        ({"SamplesPerPixel": 4}, "channels"),
        ({"Columns": 60_000}, "too_large"),
        ({"NumberOfFrames": 1_000_000}, "too_large"),
    ],
)
def test_what_is_no_axial_mr_slice_is_refused(change: dict[str, Any], code: str) -> None:
    assert code_of(dicom(PICTURE, **change)) == code


def test_the_message_names_what_it_is() -> None:
    with pytest.raises(SliceError, match="Encapsulated PDF Storage without an image"):
        describe(dicom(PICTURE, SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1", Rows=None))


def test_a_dicomdir_is_passed_over() -> None:
    with pytest.raises(NoSliceError):
        describe(dicom(PICTURE, SOPClassUID="1.2.840.10008.1.3.10"))


@pytest.mark.parametrize(
    "data", [b"", b"x" * 500, bytes(128) + b"DICM", bytes(128) + b"DICM" + b"\xff" * 300]
)
def test_what_only_looks_like_dicom_is_told(data: bytes) -> None:
    for force in (False, True):
        with pytest.raises(SliceError) as caught:
            read_header(io.BytesIO(data), whatever_it_starts_with=force)
        assert caught.value.failure.code in ("not_an_image", "truncated", "decode", "dicom_object")


@pytest.mark.parametrize("description", ["FLAIR doe", "P4711 t2", "Scan of JANE"])
def test_a_description_that_names_the_patient_is_left_out(description: str) -> None:
    label = describe(dicom(PICTURE, SeriesDescription=description)).label
    assert label.startswith("series-")


def test_a_label_is_the_description_and_tells_series_apart() -> None:
    labels = {describe(dicom(PICTURE, series=uid, SeriesDescription="t1/mpr  *tra*")).label for uid in "12"}
    assert len(labels) == 2
    assert all(label.startswith("t1_mpr_tra-") for label in labels)


@pytest.mark.parametrize(
    ("attributes", "window"),
    [
        ({"WindowCenter": 210, "WindowWidth": 502}, Window(-41.0, 460.0)),
        ({"WindowCenter": [210, 1], "WindowWidth": [502, 1]}, Window(-41.0, 460.0)),
        (
            {"WindowCenter": 100, "WindowWidth": 50, "VOILUTFunction": "LINEAR_EXACT"},
            Window(75.0, 125.0),
        ),
        ({"WindowCenter": 100, "WindowWidth": 1}, Window(99.5, 99.5)),
        ({"WindowCenter": 100}, None),
        ({"WindowCenter": 100, "WindowWidth": 0}, None),
    ],
)
def test_its_own_window_is_what_the_standard_says(attributes: dict[str, Any], window: Window | None) -> None:
    assert describe(dicom(PICTURE, **attributes)).window == window


def test_frames_of_an_enhanced_file_have_places_windows_and_scales_of_their_own() -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def groups(**macros: dict[str, Any]) -> Any:
        made = Dataset()
        for name, values in macros.items():
            item = Dataset()
            for key, value in values.items():
                setattr(item, key, value)
            setattr(made, name, Sequence([item]))
        return made

    volume = voxels(3, 6, 5, dtype=np.uint16)
    dataset = dicom(volume, height=None)
    dataset.SharedFunctionalGroupsSequence = Sequence(
        [
            groups(
                PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)},
                PixelMeasuresSequence={"PixelSpacing": [2.0, 1.5]},
                FrameVOILUTSequence={"WindowCenter": 500, "WindowWidth": 1001},
            )
        ]
    )
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [
            groups(
                PlanePositionSequence={"ImagePositionPatient": [0, 0, 4.0 * number]},
                PixelValueTransformationSequence={"RescaleSlope": number + 1, "RescaleIntercept": 7},
            )
            for number in range(3)
        ]
    )
    header = describe(dataset)
    assert [frame.height for frame in header.frames] == [0.0, 4.0, 8.0]
    assert header.frames[1].spacing == (2.0, 1.5)
    assert header.window == Window(-0.5, 999.5)
    pixels = Pixels.of(dataset)
    for number in range(3):
        values = volume[number] * (number + 1.0) + 7
        assert np.array_equal(pixels.values(number), values)
        assert np.array_equal(pixels.image(number, Window(0, 3000)), apply(Window(0, 3000), values))


def test_what_is_dark_in_monochrome1_is_shown_bright() -> None:
    shared = Window(0, 999)
    usual, inverted = (
        Pixels.of(dicom(PICTURE, PhotometricInterpretation=f"MONOCHROME{kind}")).image(0, shared)
        for kind in (2, 1)
    )
    assert np.array_equal(inverted, 255 - usual)


def test_bytes_are_taken_as_they_are_and_signed_values_are_signed() -> None:
    small = voxels(6, 5, dtype=np.uint8, top=250)
    assert np.array_equal(Pixels.of(dicom(small)).image(0, Window(10, 20)), small)
    signed = voxels(6, 5, dtype=np.int16) - 500
    pixels = Pixels.of(dicom(signed, RescaleSlope=2, RescaleIntercept=-3))
    assert np.array_equal(pixels.values(0), signed * 2.0 - 3)


def test_pixels_that_are_missing_or_cut_short_are_told() -> None:
    for change in ({"PixelData": PICTURE.tobytes()[:-4]}, {"PixelData": None}):
        dataset = dicom(PICTURE)
        for name, value in change.items():
            setattr(dataset, name, value) if value is not None else delattr(dataset, name)
        with pytest.raises(SliceError) as caught:
            Pixels.of(dataset).image(0, None)
        assert caught.value.failure.code == "truncated"


def test_a_syntax_without_a_decoder_is_named() -> None:
    dataset = dicom(PICTURE)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
    with pytest.raises(SliceError, match="High-Throughput JPEG 2000"):
        Pixels.of(dataset)


@pytest.mark.parametrize(
    "name", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit", "expb", "padded"]
)
def test_every_syntax_gives_the_same_pixels(name: str) -> None:
    plain = Pixels.of(opened(SHIPPED / "MR_small.dcm")).values(0)
    assert np.array_equal(Pixels.of(opened(SHIPPED / f"MR_small_{name}.dcm")).values(0), plain)


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm", "SC_rgb_rle", "SC_ybr_full_422_uncompressed"])
def test_colours_are_red_green_and_blue(name: str) -> None:
    image = Pixels.of(opened(SHIPPED / f"{name}.dcm")).image(0, None)
    top = image[5, 50]
    assert top[0] > 240
    assert top[1:].max() < 20


def test_no_file_of_many_makers_brings_more_than_a_refusal() -> None:
    scored = 0
    for path in sorted(SHIPPED.rglob("*")):
        if not path.is_file() or path.stat().st_size > 2**18:
            continue
        try:
            pixels = Pixels.of(opened(path))
            pixels.image(0, pixels.header.window)
            scored += 1
        except (SliceError, NoSliceError):
            continue
    assert scored > 25


@needs_real
def test_real_files_are_one_series_in_order() -> None:
    found = [read_header(io.BytesIO(path.read_bytes())) for path in sorted(REAL.glob("1-00*.dcm"))]
    assert [header.key for header in found] == sorted(header.key for header in found)
    assert {header.label for header in found} == {"t1_mpr_tra_gk_v4-594b1f88"}


@needs_real
def test_a_real_jpeg_2000_mosaic_is_refused_for_what_it_shows_and_decodes() -> None:
    dataset = opened(REAL / "jp2k1.dcm")
    assert code_of(dataset) == "mosaic"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    assert Pixels.of(dataset).stored(0).shape == (516, 516)


def test_gaps_and_uneven_steps_are_told_in_a_few_words() -> None:
    assert uneven([0.0, 5.0, 10.0, 15.01, None]) == ""
    assert uneven([0.0, 5.0, 15.0, 20.0, 35.0, 40.0]) == "3 of its slices are missing"
    assert uneven([0.0, 5.0, 12.0, 17.0]) == "its slices are 5 to 7 mm apart"
    assert uneven([3.0, 3.0, 8.0]) == ""


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", dicom(PICTURE))
    assert np.array_equal(Pixels.of(opened(path)).stored(0), PICTURE)
