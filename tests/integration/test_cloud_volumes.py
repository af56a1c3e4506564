"""Volumes that lie in an object store: NIfTI files are scored there as on a disk, DICOM is refused."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.errors import UsageError
from engine.merge import Options as Merging
from engine.merge import merge
from engine.outputs.components import Rule
from engine.scoring import Options, Outcome, score
from engine.sources.shards import Shard
from tests.cloudruns import empty_disk
from tests.s3server import BUCKET, S3Server, s3_server
from tests.tinybundle import make_tiny_bundle, tiny_slice
from tests.volumes import write_nifti

pytest.importorskip("s3fs")
pytest.importorskip("nibabel")

DATA = f"s3://{BUCKET}/data"
TABLES = ("results.csv", "errors.csv", "volumes.csv")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ (two good volumes, two bad ones) and bundle/."""
    folder = tmp_path_factory.mktemp("volumes")
    planes = [tiny_slice(number, lesion=number % 3 != 1)[..., 1] for number in range(5)]
    volume = np.stack(planes, axis=-1).transpose(1, 0, 2)
    write_nifti(folder / "data" / "a" / "head.nii.gz", volume)
    write_nifti(folder / "data" / "b" / "thin.nii", volume[:, :, :2].astype(np.int16) * 9)
    (folder / "data" / "a" / "empty.nii").write_bytes(b"")
    (folder / "data" / "b" / "text.nii.gz").write_bytes(gzip.compress(b"patient, date\n" * 99))
    make_tiny_bundle(folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[S3Server]:
    with s3_server(home / "server") as found:
        found.upload(home / "data", DATA)
        yield found


@pytest.fixture
def here(home: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder `home`, worked in; what a user sets for the server is set."""
    for name, value in server.environment(None).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(home)
    return home


def run(where: str, out: str | Path, **more: object) -> Outcome:
    words = {"bundle": Path("bundle"), "backend": "onnxruntime", "batch": 2, "workers": 1, **more}
    return score(Options((where,), Path(out), **words))  # type: ignore[arg-type]


def files_of(out: Path) -> dict[str, bytes]:
    """Tables, masks and volumes, with the addresses of slices as those of the disk."""
    found = {name: (out / name).read_bytes().replace(DATA.encode(), b"data") for name in TABLES}
    below = (path for name in ("masks", "volumes") for path in (out / name).rglob("*") if path.is_file())
    return found | {str(path.relative_to(out)): path.read_bytes() for path in below}


@pytest.mark.parametrize("rule", ["all", "0.001ml"])
def test_nifti_files_in_a_store_give_what_they_give_on_a_disk(here: Path, tmp_path: Path, rule: str) -> None:
    components = Rule.parse(rule)
    outcome = run("data", tmp_path / "disk", components=components)
    assert (outcome.counts.ok, outcome.counts.quarantined) == (7, 2)
    run(DATA, tmp_path / "far", components=components)

    whole = files_of(tmp_path / "disk")
    assert sum(name.startswith("volumes/") for name in whole) == 2
    assert files_of(tmp_path / "far") == whole


def test_from_a_store_into_a_store_a_volume_is_gone_on_with(
    here: Path, server: S3Server, tmp_path: Path
) -> None:
    out = f"s3://{BUCKET}/out"
    run("data", tmp_path / "disk")
    run(DATA, out, limit=3)
    empty_disk(tmp_path)
    assert run(DATA, out).finished

    there = server.below(out)
    for name, data in files_of(tmp_path / "disk").items():
        assert there[name].replace(DATA.encode(), b"data") == data


def test_shards_of_volumes_in_a_store_are_merged(here: Path, tmp_path: Path) -> None:
    rule = Rule.parse("0.001ml")
    run("data", tmp_path / "disk", components=rule)
    shards = [tmp_path / "1", tmp_path / "2"]
    for number, shard in enumerate(shards, start=1):
        run(DATA, shard, components=rule, shard=Shard.parse(f"{number}/2"))
    merge(Merging(tuple(shards), tmp_path / "merged"), lambda done, total: None)

    assert files_of(tmp_path / "merged") == files_of(tmp_path / "disk")


def test_sequences_in_a_store_are_not_combined(here: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^--channels combines files on a disk: copy those of the object store"
    ):
        run(DATA, tmp_path / "out", channels="flair=head")


def test_dicom_in_a_store_is_refused_by_name(here: Path, server: S3Server, tmp_path: Path) -> None:
    server.files.pipe_file(f"{BUCKET}/series/1.dcm", b"?")
    with pytest.raises(UsageError, match=r"^s3://slices/series/1.dcm: DICOM files .* from a disk only: copy"):
        run(f"s3://{BUCKET}/series", tmp_path / "out")
    with pytest.raises(UsageError, match=r"^s3://slices/series/1.dcm: DICOM files"):
        run(f"s3://{BUCKET}/series/1.dcm", tmp_path / "out")
