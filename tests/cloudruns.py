"""What tests of runs over object stores share: a server, slices in it, a local run of the same."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest

from engine.scoring import Options, Outcome, score
from tests.badfiles import png, tiff
from tests.runs import files_below, write_slices
from tests.s3server import BUCKET, S3Server
from tests.tinybundle import make_tiny_bundle, tiny_slice

QUICK = (0.05, 0.1, 0.1)
"""Patience of tests whose store stays away."""


@dataclass(slots=True)
class Cloud:
    """Slices in `folder`/data and in the bucket, and what a run on the disk makes of them."""

    server: S3Server
    folder: Path
    results: bytes
    errors: bytes
    files: dict[str, bytes]
    number: int = 0

    @property
    def data(self) -> str:
        """The address of the slices."""
        return f"s3://{BUCKET}/data"

    def new(self) -> str:
        """An address that nothing lies below yet."""
        self.number += 1
        return f"s3://{BUCKET}/out-{self.number}"

    def options(self, where: str, out: str | Path, **more: object) -> Options:
        words = {"bundle": self.folder / "bundle", "backend": "onnxruntime", "batch": 4, "workers": 1}
        return Options((where,), Path(out), **{**words, **more})  # type: ignore[arg-type]

    def score(self, where: str, out: str | Path, **more: object) -> Outcome:
        return score(self.options(where, out, **more))

    def expect(self, out: str | Path, where: str) -> None:
        """Fail unless all below `out` is what the run on the disk left, but for the addresses of slices."""
        there = _below(self.server, out)
        assert there["results.csv"].replace(where.encode(), b"data") == self.results
        assert there["errors.csv"].replace(where.encode(), b"data") == self.errors
        assert {name: data for name, data in there.items() if name.startswith("masks/")} == self.files


def make_cloud(server: S3Server, folder: Path, slices: int) -> Cloud:
    """Write slices, two of them bad, one of two pages; score them; put them into the bucket."""
    data = folder / "data"
    write_slices(data, slices)
    (data / "p1" / "cut.tif").write_bytes(tiff(256, 256)[:900])
    (data / "p2" / "note.txt").write_text("not a slice")
    (data / "p2" / "README").write_text("neither")
    (data / "p3" / "text.png").write_bytes(b"patient, date\n" * 9)
    (data / "p3" / "small.png").write_bytes(png(31, 47))
    pages = [tiny_slice(number, lesion=number != 101) for number in range(100, 103)]
    cv2.imwritemulti(str(data / "p0" / "pages.tif"), pages)
    make_tiny_bundle(folder / "bundle")
    cloud = Cloud(server, folder, b"", b"", {})
    here = Path.cwd()
    try:
        os.chdir(folder)
        cloud.score("data", "whole")
    finally:
        os.chdir(here)
    whole = folder / "whole"
    cloud.results, cloud.errors = ((whole / f"{name}.csv").read_bytes() for name in ("results", "errors"))
    cloud.files = files_below(whole)
    server.upload(data, cloud.data)
    return cloud


def as_a_user(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str = "") -> None:
    """Set what a user sets, and begin with an empty cache."""
    for name, value in cloud.server.environment(endpoint or None).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(cloud.folder)


def empty_disk(tmp_path: Path) -> None:
    """Lose all that this machine knows of its runs."""
    shutil.rmtree(tmp_path / "cache")


def _below(server: S3Server, out: str | Path) -> dict[str, bytes]:
    if isinstance(out, str) and out.startswith("s3://"):
        return server.below(out)
    names = ("results.csv", "errors.csv")
    return {**{name: Path(out, name).read_bytes() for name in names}, **files_below(Path(out))}
