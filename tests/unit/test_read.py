"""One file in, one 256x256 RGB slice out, or one line that says why not."""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.errors import Failure, SliceError
from engine.sources.files import read_file
from engine.sources.geometry import fit
from engine.sources.read import decode_slice
from engine.sources.windows import window
from tests.badfiles import JPEG, WEBP, gradient, png, tiff, write_bad_files

NOBODY = 65_534
LZW, DEFLATE, PACKBITS = 5, 8, 32_773


def decoded(data: bytes) -> npt.NDArray[np.uint8]:
    out = np.full((256, 256, 3), 123, np.uint8)
    decode_slice(data, out)
    return out


def fitted(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    out = np.empty((256, 256, 3), np.uint8)
    fit(image if image.ndim == 3 else np.dstack([image] * 3), out)
    return out


def failure_of(data: bytes) -> Failure:
    with pytest.raises(SliceError) as caught:
        decoded(data)
    return caught.value.failure


def random_image(*shape: int, dtype: type = np.uint8) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 200, shape).astype(dtype)


def encoded(ending: str, image: npt.NDArray[np.uint8], *options: int) -> bytes:
    done, data = cv2.imencode(ending, image[..., ::-1] if image.ndim == 3 else image, options)
    assert done
    return data.tobytes()


def test_every_bad_file_is_scored_or_refused_with_its_code(tmp_path: Path) -> None:
    for case in write_bad_files(tmp_path / "bad"):
        path = os.fsencode(tmp_path / "bad") + b"/" + case.name
        failure = None
        try:
            decoded(read_file(path))
        except SliceError as error:
            failure = error.failure
        assert failure is None or "\n" not in failure.message
        code = failure.code if failure else None
        assert code == ("is_directory" if case.name == b"loop" else case.code), case


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_uncompressed_tiff_gives_its_pixels(channels: int, bits: int, order: str) -> None:
    image = random_image(256, 256, channels, dtype=np.uint8 if bits == 8 else np.uint16)
    stored = image.astype(f"{order}u{bits // 8}").tobytes()
    shown = image[:, :, :3] if channels > 1 else np.repeat(image, 3, axis=2)
    expected = shown if bits == 8 else window(shown)
    assert np.array_equal(decoded(tiff(256, 256, channels, bits, stored, order=order)), expected)


@pytest.mark.parametrize("compression", [1, LZW, DEFLATE, PACKBITS])
@pytest.mark.parametrize("ending", [".tif", ".TIFF"])
def test_a_tiff_of_many_strips_gives_its_pixels_however_compressed(compression: int, ending: str) -> None:
    image = random_image(256, 256, 3)
    options = (cv2.IMWRITE_TIFF_COMPRESSION, compression, cv2.IMWRITE_TIFF_ROWSPERSTRIP, 11)
    assert np.array_equal(decoded(encoded(ending, image, *options)), image)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("compression", [1, LZW, DEFLATE])
def test_other_numbers_are_windowed(dtype: type, compression: int) -> None:
    image = random_image(256, 256, 3, dtype=dtype) // 2
    try:
        data = encoded(".tif", image, cv2.IMWRITE_TIFF_COMPRESSION, compression)
    except cv2.error:
        pytest.skip("this OpenCV does not write it")
    assert np.array_equal(decoded(data), window(image))


def test_half_precision_is_windowed() -> None:
    image = random_image(256, 256, 1, dtype=np.float16)
    data = tiff(256, 256, 1, 16, image.tobytes(), tags={339: 3})
    assert np.array_equal(decoded(data), np.repeat(window(image), 3, axis=2))


@pytest.mark.parametrize("compressed", [False, True])
def test_planes_and_predictors_are_put_together(compressed: bool) -> None:
    image = random_image(256, 256, 3, dtype=np.uint16)
    planes = np.moveaxis(image, 2, 0)
    steps = np.diff(planes, axis=2, prepend=np.uint16(0))
    bodies = [
        zlib.compress(step.tobytes()) if compressed else plane.tobytes()
        for step, plane in zip(steps, planes, strict=True)
    ]
    data = _tiff_of_planes(256, 256, 16, bodies, {317: 2, 259: DEFLATE} if compressed else {})
    assert np.array_equal(decoded(data), window(image))


def test_white_is_zero_is_turned_over() -> None:
    image = random_image(256, 256)
    plain = tiff(256, 256, 1, pixels=image.tobytes(), tags={262: 0})
    assert np.array_equal(decoded(plain)[:, :, 1], 255 - image)
    by_opencv = _with_tag(encoded(".tif", image, cv2.IMWRITE_TIFF_COMPRESSION, LZW), 262, 0)
    assert np.array_equal(decoded(by_opencv)[:, :, 1], 255 - image)


@pytest.mark.parametrize("compression", [1, LZW])
def test_alpha_is_dropped_without_blending(compression: int) -> None:
    image = random_image(256, 256, 4)
    swapped = np.ascontiguousarray(image[:, :, [2, 1, 0, 3]])
    _, data = cv2.imencode(".tif", swapped, (cv2.IMWRITE_TIFF_COMPRESSION, compression))
    assert np.array_equal(decoded(data.tobytes()), image[:, :, :3])
    _, data = cv2.imencode(".png", swapped)
    assert np.array_equal(decoded(data.tobytes()), image[:, :, :3])


def test_a_stored_orientation_is_ignored() -> None:
    image = random_image(256, 256, 3)
    for compression in (1, LZW):
        data = encoded(".tif", image, cv2.IMWRITE_TIFF_COMPRESSION, compression)
        assert np.array_equal(decoded(_with_tag(data, 274, 6)), image)
    exif = b"Exif\0\0" + tiff(1, 1, 1, tags={274: 6})
    turned = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:]
    assert np.array_equal(decoded(turned), decoded(JPEG))


def test_grey_becomes_three_equal_channels() -> None:
    image = random_image(256, 256)
    for data in (encoded(".png", image), tiff(256, 256, 1, pixels=image.tobytes())):
        assert np.array_equal(decoded(data), np.dstack([image] * 3))


def test_sixteen_bits_look_alike_as_png_and_tiff() -> None:
    image = random_image(90, 70, dtype=np.uint16) * 200
    from_png = decoded(encoded(".png", image))
    assert np.array_equal(from_png, decoded(tiff(70, 90, 1, 16, image.tobytes())))
    assert np.array_equal(from_png, fitted(window(image)))


def test_jpeg_and_webp_are_what_opencv_makes_of_them() -> None:
    image = cv2.GaussianBlur(random_image(200, 256, 3), (0, 0), 5)
    for ending in (".jpg", ".webp"):
        data = encoded(ending, image)
        by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        assert np.array_equal(decoded(data), fitted(np.ascontiguousarray(by_opencv)))


def test_the_sources_size_is_returned() -> None:
    out = np.empty((256, 256, 3), np.uint8)
    assert decode_slice(tiff(40, 31), out) == (31, 40)
    assert decode_slice(JPEG, out) == (16, 16)


def test_bytes_behind_the_image_do_no_harm() -> None:
    for data in (JPEG, png(8, 8), tiff(8, 8), WEBP):
        assert np.array_equal(decoded(data + b"trailer" * 9), decoded(data))


def test_the_end_of_a_thumbnail_is_not_the_end_of_its_jpeg() -> None:
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(JPEG) + 2) + JPEG
    with_thumbnail = JPEG[:2] + thumbnail + JPEG[2:]
    assert np.array_equal(decoded(with_thumbnail), decoded(JPEG))
    assert failure_of(with_thumbnail[:-100]).code == "truncated"


@pytest.mark.parametrize("data", [tiff(40, 40), png(40, 40), JPEG, WEBP], ids=["tiff", "png", "jpeg", "webp"])
@given(cut=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_an_image_cut_anywhere_is_refused(data: bytes, cut: float) -> None:
    failure = failure_of(data[: int(len(data) * cut)])
    assert failure.stage == "decode"
    assert failure.code in ("empty", "truncated", "not_an_image", "decode")


@given(
    data=st.sampled_from([tiff(20, 20), tiff(20, 20, 1, 16, order=">"), png(20, 20), JPEG, WEBP]),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
    ),
)
@settings(max_examples=200, deadline=None)
def test_any_damage_is_either_decoded_or_refused(data: bytes, changes: list[tuple[float, int]]) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    with contextlib.suppress(SliceError):
        decoded(bytes(damaged))


def test_damage_inside_deflated_strips_is_noticed() -> None:
    image = cv2.GaussianBlur(random_image(64, 64, 3), (0, 0), 3)
    data = bytearray(encoded(".tif", image, cv2.IMWRITE_TIFF_COMPRESSION, DEFLATE))
    data[len(data) // 3] ^= 0xFF
    assert failure_of(bytes(data)).code in ("decode", "truncated")


def test_a_huge_header_is_refused_before_memory_is_asked_for() -> None:
    assert failure_of(tiff(65_535, 65_535, pixels=b"x")).code == "too_large"
    frame = JPEG.index(b"\xff\xc0") + 5
    assert failure_of(JPEG[:frame] + b"\xff\xff\xff\xff" + JPEG[frame + 4 :]).code == "too_large"


def test_an_animated_webp_is_refused() -> None:
    canvas = struct.pack("<I", 0x02) + (15).to_bytes(3, "little") * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + WEBP[12:]
    assert failure_of(b"RIFF" + struct.pack("<I", len(body)) + body).code == "multi_page"


def test_complex_numbers_are_refused() -> None:
    assert failure_of(tiff(4, 4, 1, 64, tags={339: 6})).code == "unsupported"


def test_a_window_is_set_by_what_is_not_zero() -> None:
    values = np.concatenate([np.zeros(5000), np.arange(1, 1001)])
    low, high = np.percentile(np.arange(1, 1001), (0.5, 99.5))
    windowed = window(values)
    assert (windowed[:5000] == 0).all()
    assert np.array_equal(windowed[5000:], np.rint(np.clip((values[5000:] - low) / (high - low), 0, 1) * 255))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([7.0, 7.0, 7.0], [255, 255, 255]),
        ([0.0, 5.0, 5.0], [0, 255, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
        ([np.nan, 1.0, np.inf], [0, 255, 255]),
        ([-np.inf, np.inf, np.nan], [0, 0, 0]),
    ],
)
def test_a_window_of_few_values_is_defined(values: list[float], expected: list[int]) -> None:
    assert window(np.array(values, np.float32)).tolist() == expected


@example([1e300, 4.08e-35, 1.95e-112])
@given(
    st.lists(st.floats(width=64), min_size=1, max_size=30)
    | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30)
)
def test_any_numbers_are_windowed_without_a_warning(values: list[float]) -> None:
    array = np.array(values)
    windowed = window(array)
    order = np.argsort(np.nan_to_num(array.astype(np.float64)), kind="stable")
    assert (np.diff(windowed[order].astype(int)) >= 0).all()


def test_a_pipe_does_not_hang_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(SliceError) as caught:
        read_file(os.fsencode(tmp_path / "x.png"))
    assert caught.value.failure == Failure("read", "not_a_file", "a pipe, socket or device, not a file")


def test_what_cannot_be_read_may_be_tried_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "self").symlink_to("self")
    for name, code in (
        ("gone", "not_found"),
        ("file/below", "not_found"),
        (".", "is_directory"),
        ("self", "link_loop"),
    ):
        with pytest.raises(SliceError) as caught:
            read_file(os.fsencode(tmp_path / name))
        assert (caught.value.failure.stage, caught.value.failure.code) == ("read", code)
        assert caught.value.failure.transient


@pytest.mark.parametrize("change", ["grows", "shrinks", "is written", "is replaced", "is deleted"])
def test_a_file_that_changes_while_it_is_read_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(bytes(9_000))
    stat_of = os.fstat

    def changed_after(descriptor: int) -> os.stat_result:
        monkeypatch.setattr(os, "fstat", stat_of)
        status = stat_of(descriptor)
        if change == "grows":
            path.write_bytes(bytes(9_001))
        elif change == "shrinks":
            os.truncate(path, 4_000)
        elif change == "is written":
            os.utime(path, ns=(0, status.st_mtime_ns + 1))
        else:
            path.unlink()
        if change == "is replaced":
            path.write_bytes(bytes(9_000))
        return status

    monkeypatch.setattr(os, "fstat", changed_after)
    with pytest.raises(SliceError) as caught:
        read_file(os.fsencode(path))
    assert (caught.value.failure.stage, caught.value.failure.code) == ("read", "changed")
    assert caught.value.failure.transient


def test_a_file_without_permission_is_named_so(locked_file: Path) -> None:
    with pytest.raises(SliceError) as caught:
        read_file(os.fsencode(locked_file))
    assert caught.value.failure.code == "permission"


@pytest.fixture
def locked_file(tmp_path: Path) -> Iterator[Path]:
    """A file that this process may not read, root or not."""
    path = tmp_path / "locked.png"
    path.write_bytes(png(4, 4))
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    yield path
    os.seteuid(user)


def _with_tag(data: bytes, tag: int, value: int) -> bytes:
    """Set a SHORT tag of a little-endian TIFF; one that is missing takes the place of the software tag."""
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = [data[start + 2 + 12 * index : start + 14 + 12 * index] for index in range(count)]
    kept = [entry for entry in entries if struct.unpack_from("<H", entry)[0] != tag]
    kept.append(struct.pack("<HHIHH", tag, 3, 1, value, 0))
    kept.sort(key=lambda entry: struct.unpack_from("<H", entry))
    directory = struct.pack("<H", len(kept)) + b"".join(kept) + bytes(4)
    moved = data + b"\0" * (len(data) % 2)
    return moved[:4] + struct.pack("<I", len(moved)) + moved[8:] + directory


def _tiff_of_planes(width: int, height: int, bits: int, bodies: list[bytes], tags: dict[int, int]) -> bytes:
    """A little-endian planar TIFF of one strip a plane."""
    ends = list(itertools.accumulate(map(len, bodies), initial=8))
    start = ends[-1] + ends[-1] % 2
    values = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: 2,
        277: len(bodies),
        278: height,
        284: 2,
        **tags,
    }
    arrays_at = start + 2 + 12 * (len(values) + 2) + 4
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in values.items()]
    entries.append(struct.pack("<HHII", 273, 4, len(bodies), arrays_at))
    entries.append(struct.pack("<HHII", 279, 4, len(bodies), arrays_at + 4 * len(bodies)))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    arrays = struct.pack(f"<{2 * len(bodies)}I", *ends[:-1], *map(len, bodies))
    head = struct.pack("<2sHI", b"II", 42, start) + b"".join(bodies) + b"\0" * (ends[-1] % 2)
    return head + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4) + arrays


def test_the_writers_of_this_test_agree_with_opencv() -> None:
    for data in (png(9, 7), tiff(9, 7)):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image[:, :, ::-1].tobytes() == gradient(9, 7, 3)
