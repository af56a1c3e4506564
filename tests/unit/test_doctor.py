"""Doctor on machines that lack things or have them half installed: fakes are real libraries and packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.bundle import Bundle, record_parity
from engine.checks.finding import Finding, guarded
from engine.checks.gpu import look_at_driver, look_at_pycuda, look_at_tensorrt
from engine.checks.machine import look_at_disk
from engine.checks.models import look_at_plans
from engine.doctor import Report, examine
from engine.errors import UsageError
from engine.host import cpu_limit, memory_limit
from engine.probes import Answer, Subject, ask
from engine.runners import BF16_FLAGS, cpu_flags
from tests.fakecuda import build_libcuda
from tests.runs import Ran, environment
from tests.tinybundle import make_tiny_bundle
from tests.unit.test_backend import machine as machine_with

NAMES = [
    "driver", "tensorrt", "tensorrt-rtx", "pycuda", "decoding", "openvino", "onnxruntime", "system", "cpu",
    "cores", "memory", "descriptors", "disk", "bundle", "plans", "disk-plans",
]  # fmt: skip
GPU = {"index": 0, "name": "H100", "compute_capability": [9, 0], "memory": 80 << 30, "uuid": ""}
NO_GPU = Answer("absent", {}, "no NVIDIA driver here")
WITH_GPU = Answer("ok", {"cuda": [12, 4], "release": "550.54", "gpus": [GPU]})
SEGFAULT = "import ctypes\nctypes.string_at(0)\n"
MISSING_LIBRARY = 'raise ImportError("libnvinfer.so.10: cannot open shared object file:\\nNo such file")\n'


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_libcuda(tmp_path_factory.mktemp("cuda")))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_tiny_bundle(tmp_path / "tiny")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is looked into first for modules, here and in the processes that are asked."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "readonly"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def put_module(packages: Path, name: str, code: str) -> None:
    (packages / name).mkdir()
    (packages / name / "__init__.py").write_text(code)


def put_package(packages: Path, name: str, version: str) -> None:
    """What pip leaves of an installed distribution."""
    folder = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def doctor(*words: str | Path, cwd: Path, **variables: str) -> Ran:
    """The command as a user types it."""
    done = subprocess.run(
        [sys.executable, "-m", "engine.cli", "doctor", *map(str, words)],
        cwd=cwd,
        env={**environment(), "TUMORSCAN_PLAN_CACHE": str(cwd / "plans"), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def named(report: Report, name: str) -> Finding:
    (finding,) = (finding for finding in report.findings if finding.name == name)
    return finding


def test_the_table_says_each_status_as_a_word_and_ends_with_the_choice(
    bundle: Bundle, tmp_path: Path, libcuda: str
) -> None:
    ran = doctor(
        "--bundle",
        bundle.folder,
        cwd=tmp_path,
        LD_LIBRARY_PATH=libcuda,
        FAKE_GPUS="0",
        CUDA_VISIBLE_DEVICES="0",
    )
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")][:-1] == [
        "GPU",
        "runtimes",
        "machine",
        "models",
    ]
    said = {fields[0]: fields[1] for line in lines if len(fields := line.split()) > 1}
    assert said["driver"] == "missing"
    assert said["openvino"] == said["onnxruntime"] == said["bundle"] == "ok"
    assert lines[-1].startswith("score --backend auto would use openvino (fp32): because ")
    assert lines[-1].endswith("; there is no NVIDIA GPU to use")
    assert "CUDA_VISIBLE_DEVICES='0' leaves none" in ran.out
    assert not any(line.endswith(" ") for line in lines)
    assert not (tmp_path / "plans").exists()


def test_json_has_the_documented_keys(bundle: Bundle, tmp_path: Path, libcuda: str) -> None:
    ran = doctor("--json", "--bundle", bundle.folder, cwd=tmp_path, LD_LIBRARY_PATH=libcuda, FAKE_INIT="999")
    assert (ran.status, ran.err) == (0, "")
    fields = json.loads(ran.out)
    assert list(fields) == ["format_version", "tumorscan", "can_score", "choice", "findings"]
    assert list(fields["choice"]) == ["backend", "precision", "why"]
    assert [finding["name"] for finding in fields["findings"]] == NAMES
    for finding in fields["findings"]:
        assert list(finding) == ["group", "name", "status", "value", "advice", "facts"]
    report = Report.model_validate_json(ran.out)
    assert named(report, "driver").status == "fail"
    assert "CUDA_ERROR_UNKNOWN (999)" in named(report, "driver").value
    assert report.choice.why.endswith("the NVIDIA driver does not work")


def test_gpus_are_listed_and_it_is_said_why_they_are_left_idle(
    bundle: Bundle, tmp_path: Path, libcuda: str
) -> None:
    ran = doctor("--json", "--bundle", bundle.folder, cwd=tmp_path, LD_LIBRARY_PATH=libcuda)
    report = Report.model_validate_json(ran.out)
    assert named(report, "driver").facts["cuda"] == [13, 0]
    first, second = named(report, "gpu-0"), named(report, "gpu-1")
    assert (first.status, first.value) == ("ok", "NVIDIA H100 of ours, compute capability 9.0, 80.0 GiB")
    assert (second.status, second.facts["memory"]) == ("warn", 8 << 30)
    assert "need compute capability 7.5" in second.advice
    assert report.choice.backend == "openvino"
    idle = "NVIDIA H100 of ours, NVIDIA Quadro of old is left idle: "
    if find_spec("pycuda") is None:
        assert f"{idle}pycuda is not installed (pip install 'tumorscan[gpu]')" in report.choice.why
    else:
        assert idle in report.choice.why
    assert named(report, "plans").advice == "make them with tumorscan build"


def test_what_score_would_use_a_gpu_with_is_told(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = {subject: ask(subject) for subject in ("decoding", "openvino")}
    answers = {**machine_with(), **cpu}
    monkeypatch.setattr("engine.doctor._ask_all", lambda limit: answers)
    report = examine(bundle.folder, tmp_path / "plans")
    assert report.choice.sentence == (
        "score --backend auto would use tensorrt (fp16): because NVIDIA H100 is here; plans that are not "
        "cached are built first, and unproven ones are proven on the run's own slices"
    )
    assert named(report, "gpu-0").value.endswith("80.0 GiB, 70.0 GiB free")
    answers = {**machine_with(tensorrt=None), **cpu}
    report = examine(bundle.folder, tmp_path / "plans")
    assert report.choice.backend == "cuda"


def test_a_gpu_that_takes_no_work_or_does_not_read_our_memory_is_a_finding() -> None:
    used = [({"refused": "the GPU fails (exclusive)"}, "fail"), ({"free": 1 << 30, "registers": 801}, "warn")]
    for said, status in used:
        (_, found) = look_at_driver(WITH_GPU, Answer("ok", {"gpus": [said]}))
        assert found.status == status
    assert (
        "takes no work: the GPU fails"
        in look_at_driver(WITH_GPU, Answer("failed", {}, "the GPU fails"))[1].value
    )
    assert "CUDA error 801" in found.advice


def test_a_tensorrt_that_crashes_its_process_is_a_finding_and_the_rest_is_told(
    bundle: Bundle, packages: Path, tmp_path: Path
) -> None:
    put_module(packages, "tensorrt", SEGFAULT)
    put_package(packages, "tensorrt", "10.9.0.34")
    report = examine(bundle.folder, tmp_path / "plans")
    found = named(report, "tensorrt")
    assert found.status == "fail"
    assert found.value.startswith(
        "10.9.0.34 is installed but not usable: it crashes the process that loads it (Segm"
    )
    assert "--force-reinstall tensorrt" in found.advice
    assert report.can_score
    assert named(report, "bundle").status == "ok"


@pytest.mark.parametrize(
    ("code", "state", "said"),
    [
        ("import os\nos.abort()\n", "failed", "it crashes the process that loads it (Aborted)"),
        (
            "import os, sys\nprint('terminate called', file=sys.stderr, flush=True)\nos.abort()\n",
            "failed",
            "it crashes the process that loads it (Aborted) (terminate called)",
        ),
        ("import os\nos._exit(7)\n", "failed", "it ends the process that loads it with status 7"),
        ("import sys\nsys.exit('bye')\n", "failed", "SystemExit: bye"),
        (MISSING_LIBRARY, "refused", "TensorRT cannot be loaded (ImportError: libnvinfer.so.10: cannot open"),
        (
            "raise OSError(8, 'Exec format error')\n",
            "refused",
            "TensorRT cannot be loaded (OSError: [Errno 8]",
        ),
        ("", "refused", "TensorRT cannot be loaded (the module has no version"),
        ("__version__ = '8.6.1'\n", "refused", "TensorRT 8.6.1 is installed, tumorscan works with 10.8"),
        ("print('hello', flush=True)\n__version__ = '10.9.0'\n", "ok", ""),
    ],
)
def test_whatever_an_import_does_ends_only_the_process_that_was_asked(
    packages: Path, code: str, state: str, said: str
) -> None:
    put_module(packages, "tensorrt", code)
    answer = ask("tensorrt")
    assert (answer.state, answer.said[: len(said)]) == (state, said)
    assert "\n" not in answer.said
    assert answer.ok == (answer.facts == {"version": "10.9.0"})


def test_an_import_that_hangs_is_given_up(packages: Path) -> None:
    put_module(packages, "tensorrt", "import time\ntime.sleep(600)\n")
    assert ask("tensorrt", 1.5) == Answer("failed", {}, "it gives no answer in 1.5 s")


def test_what_a_crash_leaves_on_standard_output_is_no_answer(packages: Path) -> None:
    (packages / "sitecustomize.py").write_text("print('3', flush=True)\n")
    put_module(packages, "tensorrt", SEGFAULT)
    assert ask("tensorrt").said.startswith("it crashes")
    assert ask("decoding").ok


@pytest.mark.parametrize(
    ("variable", "limit", "said"),
    [
        ("FAKE_CRASH", 60, "it crashes the process that loads it (Segm"),
        ("FAKE_HANG", 3, "it gives no answer in 3 s"),
    ],
)
def test_a_driver_that_crashes_or_hangs_is_a_finding(
    libcuda: str, monkeypatch: pytest.MonkeyPatch, variable: str, limit: float, said: str
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", libcuda)
    monkeypatch.setenv(variable, "1")
    (found,) = look_at_driver(ask("driver", limit))
    assert (found.status, found.advice) == ("fail", "see that nvidia-smi works, or reboot")
    assert found.value.startswith(f"installed but not usable: {said}")


def test_a_driver_older_than_the_cuda_of_tensorrts_wheels_is_found() -> None:
    answer = Answer("ok", {"version": "10.16.1.11"})
    wheels = {"tensorrt": "10.16.1.11", "tensorrt-cu13-bindings": "10.16.1.11"}
    (found,) = look_at_tensorrt("tensorrt", answer, WITH_GPU, wheels)
    assert found.status == "fail"
    assert found.value == "10.16.1.11 is made for CUDA 13, the driver is too old: it goes up to 12.4"
    assert found.advice == "update the NVIDIA driver, or pip install tensorrt-cu12"
    (found,) = look_at_tensorrt("tensorrt", answer, WITH_GPU, {"tensorrt-cu12-libs": "10.16.1.11"})
    assert (found.status, found.value) == ("ok", "10.16.1.11")


def test_a_tensorrt_without_a_gpu_builds_nothing_and_a_gpu_without_one_is_told_what_to_install() -> None:
    (found,) = look_at_tensorrt("tensorrt", Answer("ok", {"version": "10.8.0.43"}), NO_GPU, {})
    assert found.status == "warn"
    (found,) = look_at_tensorrt("tensorrt", None, WITH_GPU, {})
    assert (found.status, found.advice[:11]) == ("missing", "pip install")
    (found,) = look_at_tensorrt("tensorrt", None, NO_GPU, {})
    assert (found.status, found.advice) == ("missing", "")


def test_a_pycuda_that_lacks_its_driver_is_told_from_one_that_is_broken(packages: Path) -> None:
    put_module(packages, "pycuda", "")
    (packages / "pycuda" / "driver.py").write_text("raise ImportError('libcuda.so.1: cannot open')\n")
    answer = ask("pycuda")
    assert answer.state == "failed"
    assert [look_at_pycuda(answer, driver)[0].status for driver in (NO_GPU, WITH_GPU)] == ["warn", "fail"]
    assert [look_at_pycuda(None, driver)[0].advice for driver in (NO_GPU, WITH_GPU)] == [
        "",
        "pip install 'tumorscan[gpu]'",
    ]


def test_two_onnxruntimes_in_one_folder_and_a_damaged_cache_are_found(
    bundle: Bundle, packages: Path, tmp_path: Path
) -> None:
    put_package(packages, "onnxruntime", "1.23.0")
    put_package(packages, "onnxruntime_gpu", "1.22.0")
    (packages / "broken-1.dist-info").mkdir()
    cache = tmp_path / "plans"
    (cache / "classifier-0123456789abcdef").mkdir(parents=True)
    cache.chmod(0o700)
    report = examine(bundle.folder, cache)
    found = named(report, "onnxruntime")
    assert found.status == "warn"
    assert "onnxruntime and onnxruntime-gpu are both installed" in found.value
    assert found.advice.startswith("keep one: pip uninstall -y onnxruntime onnxruntime-gpu, then ")
    assert found.facts["packages"] == {"onnxruntime": "1.23.0", "onnxruntime-gpu": "1.22.0"}
    assert (named(report, "plans").status, named(report, "disk-plans").status) == ("warn", "ok")
    assert named(report, "plans").value.startswith("1 damaged; ")


def test_a_damaged_bundle_is_named_and_nothing_can_score(bundle: Bundle, tmp_path: Path) -> None:
    with (bundle.folder / "segmenter.onnx").open("ab") as file:
        file.write(b"more")
    ran = doctor("--bundle", bundle.folder, cwd=tmp_path)
    assert (ran.status, ran.err) == (3, "")
    assert "segmenter.onnx has" in ran.out
    assert ran.out.splitlines()[-1] == "score --backend auto would fail: because the bundle is no good"


@pytest.mark.parametrize(
    ("broken", "can_score", "why"),
    [
        (["openvino"], True, "openvino comes first and is not usable; give --backend onnxruntime"),
        (
            ["openvino", "onnxruntime"],
            False,
            "openvino comes first and is not usable; no other runtime loads",
        ),
        (["cv2"], False, "no slice can be decoded: NumPy or OpenCV does not load"),
    ],
)
def test_a_broken_base_is_told_with_what_still_works(
    bundle: Bundle, packages: Path, tmp_path: Path, broken: list[str], can_score: bool, why: str
) -> None:
    for module in broken:
        put_module(packages, module, SEGFAULT)
    report = examine(bundle.folder, tmp_path / "plans")
    assert (report.can_score, report.choice.backend, report.choice.why) == (can_score, None, why)
    assert report.choice.sentence.startswith("score --backend auto would fail: because ")


def test_the_reason_for_a_precision_is_the_cpus_or_the_bundles(bundle: Bundle, tmp_path: Path) -> None:
    has_bf16 = bool(cpu_flags() & BF16_FLAGS)
    choice = examine(bundle.folder, tmp_path / "plans").choice
    assert choice.precision == {"classifier": "fp32", "segmenter": "fp32"}
    assert ("the bundle tiny records no bf16 parity" in choice.why) == has_bf16
    record_parity(bundle, "openvino:bf16", {"holds": True, "slices": 8, "mask_dice": 0.99})
    report = examine(bundle.folder, tmp_path / "plans")
    assert ("recorded bf16 parity holds" in report.choice.why) == has_bf16
    assert named(report, "parity-openvino:bf16").value == (
        "openvino:bf16 holds on 8 slices: Dice of masks 0.99"
    )


def test_a_plan_cache_that_is_another_users_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    folder = tmp_path / "plans"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    (found,) = guarded("models", "plans", lambda: look_at_plans(folder, NO_GPU))
    assert found.status == "fail"
    assert f"{folder} belongs to user 65534" in found.value


def test_a_plan_cache_that_others_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "plans"
    folder.mkdir()
    folder.chmod(0o777)
    (found,) = guarded("models", "plans", lambda: look_at_plans(folder, NO_GPU))
    assert (found.status, "can be written by others" in found.value) == ("fail", True)


def test_a_plan_cache_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plans").touch()
    (found,) = guarded("models", "plans", lambda: look_at_plans(tmp_path / "plans", NO_GPU))
    assert (found.status, "is not a folder" in found.value) == ("fail", True)


def test_a_folder_that_cannot_be_written_is_told(read_only_disk: Path) -> None:
    (found,) = look_at_disk("machine", "disk", read_only_disk / "not" / "there")
    assert (found.status, found.advice) == ("warn", "choose another folder")
    assert found.value.endswith("not/there, not writable")


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (RuntimeError("first\nsecond"), "RuntimeError: first"),
        (KeyError(), "KeyError"),
        (UsageError("do it\notherwise"), "do it otherwise"),
    ],
)
def test_an_exception_in_a_look_is_a_finding(error: Exception, value: str) -> None:
    def look() -> list[Finding]:
        raise error

    assert guarded("machine", "memory", look) == [
        Finding(group="machine", name="memory", status="fail", value=value)
    ]


@pytest.mark.parametrize("subject", ["decoding", "openvino", "onnxruntime"])
def test_what_is_installed_answers(subject: Subject) -> None:
    answer = ask(subject)
    assert answer.ok, answer.said
    assert answer.facts


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    ran = doctor("--bundle", "nowhere", cwd=tmp_path)
    assert (ran.status, ran.out, ran.err) == (2, "", "tumorscan: --bundle nowhere: no such folder\n")


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


CGROUPS: dict[str, tuple[dict[str, str], float | None, int | None]] = {
    "version 2 in a container": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/memory.max": "4294967296\n",
        },
        2.5,
        4 << 30,
    ),
    "version 2 on a host, limited above": (
        {
            "proc/self/cgroup": "0::/user.slice/job.scope\n",
            "sys/fs/cgroup/user.slice/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/user.slice/job.scope/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/memory.max": "1000\n",
            "sys/fs/cgroup/user.slice/job.scope/memory.max": "2000\n",
        },
        4.0,
        1000,
    ),
    "version 1 in a container that sees the host's names": (
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n",
        },
        1.5,
        5000,
    ),
    "version 1 without limits": (
        {
            "proc/self/cgroup": "2:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        None,
        None,
    ),
    "a name that leads out": (
        {"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/cpu.max": "100000 100000\n"},
        1.0,
        None,
    ),
    "no control groups": ({}, None, None),
}


@pytest.mark.parametrize("kind", CGROUPS)
def test_a_containers_limits_are_read_wherever_they_stand(tmp_path: Path, kind: str) -> None:
    files, cores, memory = CGROUPS[kind]
    root = machine(tmp_path, files)
    assert (cpu_limit(root), memory_limit(root)) == (cores, memory)
