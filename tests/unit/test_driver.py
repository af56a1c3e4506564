"""The driver, asked through real shared libraries that answer as the real one would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakecuda import build_libcuda, build_nvml
from tests.runs import environment

ASK = """
import dataclasses, json
from engine.driver import probe_driver
from engine.errors import MachineError
try:
    print(json.dumps(dataclasses.asdict(probe_driver())))
except MachineError as error:
    print(json.dumps([type(error).__name__, error.exit_status, str(error)]))
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 that does what FAKE_* tell it to, and a libnvidia-ml.so.1."""
    return build_nvml(build_libcuda(tmp_path_factory.mktemp("cuda")))


def ask(libraries: Path, **said: str) -> Any:
    """What `probe_driver` gives in a process that finds its libraries there: its fields, or the error's."""
    variables = {**environment(), "LD_LIBRARY_PATH": str(libraries)}
    variables.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**variables, **said},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout)


def test_a_driver_tells_its_version_and_its_gpus(libraries: Path) -> None:
    driver = ask(libraries)
    assert driver["cuda"] == [13, 0]
    assert driver["gpus"] == [
        {
            "index": 0,
            "name": "NVIDIA H100 of ours",
            "compute_capability": [9, 0],
            "memory": 80 << 30,
            "uuid": "00010203-0405-0607-0809-0a0b0c0d0e0f",
        },
        {
            "index": 1,
            "name": "NVIDIA Quadro of old",
            "compute_capability": [7, 0],
            "memory": 8 << 30,
            "uuid": "10111213-1415-1617-1819-1a1b1c1d1e1f",
        },
    ]


@pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists(), reason="a real driver tells its release here"
)
def test_the_release_is_nvmls_where_the_kernel_tells_none(libraries: Path, tmp_path: Path) -> None:
    assert ask(libraries)["release"] == "580.65.06"
    assert ask(build_libcuda(tmp_path))["release"] == ""


@pytest.mark.parametrize(
    ("text", "release"),
    [
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x@y)",
            "580.65.06",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.135  Fri Jan 10 20:00:00 UTC 2025", "550.135"),
        ("NVRM version: something that is not known yet", ""),
    ],
)
def test_the_release_is_read_from_what_the_kernel_module_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, release: str
) -> None:
    from engine import driver

    (tmp_path / "version").write_text(text + "\nGCC version:  gcc version 12.2.0 (Debian)\n")
    monkeypatch.setattr(driver, "_VERSION_FILE", tmp_path / "version")
    monkeypatch.setattr(driver, "_release_by_nvml", str)
    assert driver._release() == release


def test_an_older_drivers_uuid_is_taken_where_it_has_no_newer(tmp_path: Path) -> None:
    driver = ask(build_libcuda(tmp_path, "NO_UUID_V2"))
    assert driver["gpus"][0]["uuid"] == "11111111-1111-1111-1111-111111111111"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("2", "CUDA_ERROR_OUT_OF_MEMORY (2); free host memory"),
        ("34", "CUDA_ERROR_STUB_LIBRARY (34); the libcuda.so.1 that is found is the toolkit's stub"),
        ("35", "CUDA_ERROR_INSUFFICIENT_DRIVER (35); the driver is too old"),
        ("802", "CUDA_ERROR_SYSTEM_NOT_READY (802)"),
        (
            "803",
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803); the kernel's driver and libcuda.so.1 are of different",
        ),
        ("804", "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE (804)"),
        ("999", "CUDA_ERROR_UNKNOWN (999); see that nvidia-smi works"),
        ("777", "CUDA_ERROR_OF_A_NEWER_DRIVER (777); see that nvidia-smi works"),
        ("778", "an error (778); see that nvidia-smi works"),
    ],
)
def test_an_error_of_cuinit_is_one_line_with_its_name_and_what_to_do(
    libraries: Path, code: str, said: str
) -> None:
    kind, status, line = ask(libraries, FAKE_INIT=code)
    assert (kind, status) == ("MachineError", 3)
    assert line.startswith(f"the NVIDIA driver does not answer: cuInit gives {said}")
    assert "\n" not in line


@pytest.mark.parametrize("said", [{"FAKE_GPUS": "0"}, {"FAKE_NONE": "1"}, {"FAKE_INIT": "100"}])
def test_a_driver_without_a_gpu_is_nothing_broken(libraries: Path, said: dict[str, str]) -> None:
    kind, status, line = ask(libraries, **said)
    assert (kind, status) == ("NoGpuError", 3)
    assert line.startswith("the NVIDIA driver finds no GPU (CUDA_ERROR_NO_DEVICE): s")


def test_gpus_hidden_by_the_environment_are_told_from_gpus_that_are_not_there(libraries: Path) -> None:
    kind, _, line = ask(libraries, CUDA_VISIBLE_DEVICES="")
    assert kind == "NoGpuError"
    assert "CUDA_VISIBLE_DEVICES='' leaves none: unset it" in line


def test_a_container_without_gpus_is_told_how_to_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine import driver

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / ".dockerenv").touch()
    monkeypatch.setattr(driver, "_CONTAINER_MARKS", (tmp_path / ".dockerenv",))
    assert "start the container with --gpus all" in str(driver._no_gpu())
    monkeypatch.setattr(driver, "_CONTAINER_MARKS", (tmp_path / ".containerenv",))
    assert "see that nvidia-smi lists a GPU" in str(driver._no_gpu())


def test_a_gpu_that_fails_is_named_by_the_call_that_did(libraries: Path) -> None:
    assert ask(libraries, FAKE_DEVICE="999")[2].startswith(
        "the NVIDIA driver does not answer: cuDeviceGet gives CUDA_ERROR_UNKNOWN (999)"
    )


def test_a_libcuda_that_lacks_functions_is_no_driver(tmp_path: Path) -> None:
    kind, _, line = ask(build_libcuda(tmp_path, "ONLY_INIT"))
    assert kind == "MachineError"
    assert "lacks cuDriverGetVersion, cuDeviceGetCount, " in line
    assert "cuInit" not in line


@pytest.mark.parametrize(
    "content",
    [b"", b"#!/bin/sh\necho I am no library\n", b"\x7fELF" + bytes(60)],
    ids=["empty", "a script", "a header of zeros"],
)
def test_a_libcuda_that_is_no_library_is_refused_with_the_loaders_words(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(content)
    kind, _, line = ask(tmp_path)
    assert kind == "MachineError"
    assert line.startswith("libcuda.so.1 cannot be loaded (")
    assert line.endswith("install the NVIDIA driver again")


def test_a_machine_without_a_driver_says_so(tmp_path: Path) -> None:
    answer = ask(tmp_path)
    if isinstance(answer, dict):
        pytest.skip("there is a real NVIDIA driver here")
    kind, status, line = answer
    assert (kind, status) == ("NoGpuError", 3)
    assert line.startswith("no NVIDIA driver here: libcuda.so.1 is not found; ")


def test_asking_imports_nothing_heavy(libraries: Path) -> None:
    program = ASK + "\nimport sys\nassert not {'numpy', 'pydantic', 'pycuda'} & set(sys.modules)"
    subprocess.run(
        [sys.executable, "-c", program],
        env={**environment(), "LD_LIBRARY_PATH": str(libraries)},
        check=True,
        capture_output=True,
    )
