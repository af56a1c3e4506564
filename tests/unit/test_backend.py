"""Which runtime "auto" takes on which machine, and what it says of it."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import pytest

from engine import probes
from engine.backend import Ask, Choice, Device, asker, choose, choose_runtime
from engine.errors import MachineError, UsageError
from engine.on_gpus import batch_for
from engine.probes import Answer, Subject
from engine.settle import pick_gpus

H100, L4 = "NVIDIA H100", "NVIDIA L4"


def gpu(index: int = 0, name: str = H100, capability: tuple[int, int] = (9, 0)) -> dict[str, Any]:
    return {
        "index": index,
        "name": name,
        "compute_capability": list(capability),
        "memory": 80 << 30,
        "uuid": "",
    }


def machine(*gpus: dict[str, Any], **others: Answer | None) -> dict[str, Answer | None]:
    """What probes say where everything is installed; `others` with _ for - in their names."""
    found: dict[str, Answer | None] = {
        "driver": Answer("ok", {"cuda": [13, 0], "release": "580.65", "gpus": list(gpus or (gpu(),))}),
        "contexts": Answer("ok", {"gpus": [{"free": 70 << 30, "registers": 0} for _ in gpus or (0,)]}),
        "pycuda": Answer("ok", {"version": "2026.1"}),
        "tensorrt": Answer("ok", {"version": "10.8.0"}),
        "tensorrt-rtx": Answer("ok", {"version": "1.7.1", "targets": ["8.6", "8.9"]}),
        "onnxruntime": Answer("ok", {"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}),
    }
    return {**found, **{name.replace("_", "-"): answer for name, answer in others.items()}}


def says(answers: dict[str, Answer | None]) -> Ask:
    return lambda subject: answers.get(subject)


NO_DRIVER = Answer("absent", {}, "no NVIDIA driver here")
NO_CUDA = Answer("ok", {"providers": ["CPUExecutionProvider"]})
CRASHES = Answer("failed", {}, "it crashes the process that loads it (Segmentation fault)")


@pytest.mark.parametrize(
    ("answers", "backend", "runtime", "why"),
    [
        (machine(), "tensorrt", "tensorrt", "NVIDIA H100 is here"),
        (
            machine(gpu(name=L4, capability=(8, 9)), tensorrt=None),
            "tensorrt",
            "tensorrt-rtx",
            "for NVIDIA L4, as TensorRT is not installed",
        ),
        (
            machine(tensorrt=None),
            "cuda",
            "onnxruntime-cuda",
            "for NVIDIA H100, as TensorRT is not installed; TensorRT-RTX does not know NVIDIA H100 (compute "
            "capability 9.0)",
        ),
        (
            machine(tensorrt=CRASHES, tensorrt_rtx=None, onnxruntime=NO_CUDA),
            "openvino",
            None,
            "NVIDIA H100 is left idle: TensorRT does not load (it crashes the process that loads it "
            "(Segmentation fault)); TensorRT-RTX is not installed; ONNX Runtime has no CUDA provider",
        ),
        (
            machine(pycuda=None),
            "openvino",
            None,
            "NVIDIA H100 is left idle: pycuda is not installed (pip install 'tumorscan[gpu]')",
        ),
        (
            machine(gpu(capability=(7, 0)), tensorrt_rtx=None, onnxruntime=NO_CUDA),
            "openvino",
            None,
            "NVIDIA H100 is left idle: TensorRT does not know NVIDIA H100 (compute capability 7.0); "
            "TensorRT-RTX is not installed; ONNX Runtime has no CUDA provider",
        ),
        (
            machine(contexts=Answer("ok", {"gpus": [{"refused": "the GPU fails (exclusive)"}]})),
            "openvino",
            None,
            "NVIDIA H100 is left idle: no GPU takes work: the GPU fails (exclusive); TensorRT-RTX does not "
            "know NVIDIA H100 (compute capability 9.0)",
        ),
        (machine(driver=NO_DRIVER), "openvino", None, "there is no NVIDIA GPU to use"),
        (machine(driver=CRASHES), "openvino", None, "the NVIDIA driver does not work"),
    ],
)
def test_auto_takes_the_best_that_works_and_says_why(
    answers: dict[str, Answer | None], backend: str, runtime: str | None, why: str
) -> None:
    choice = choose("auto", says(answers))
    assert (choice.backend, choice.runtime, choice.why) == (backend, runtime, why)


def test_a_machine_without_a_driver_is_asked_by_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(probes, "ask", lambda subject: pytest.fail(f"{subject} is asked"))
    assert choose("auto", asker()) == Choice("openvino", "there is no NVIDIA GPU to use")


def test_a_question_is_put_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Subject] = []

    def ask(subject: Subject) -> Answer:
        asked.append(subject)
        return CRASHES

    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr(probes, "ask", ask)
    questions = asker()
    for _ in range(2):
        assert choose("auto", questions).why == "the NVIDIA driver does not work"
    assert asked == ["driver"]


def test_what_no_gpu_does_stays_on_the_cpu() -> None:
    choice = choose("auto", says(machine()), cpu="--precision bf16 is the CPU's")
    assert choice == Choice("openvino", "NVIDIA H100 is left idle: --precision bf16 is the CPU's")


def test_what_did_not_come_up_is_done_without() -> None:
    choice = choose("auto", says(machine()), failed={"tensorrt": "the plans fail their proof"})
    assert (choice.backend, choice.why.partition(";")[0]) == (
        "cuda",
        "for NVIDIA H100, as the plans fail their proof",
    )


def test_a_named_backend_that_does_not_work_is_an_error() -> None:
    assert choose("onnxruntime", says({})) == Choice("onnxruntime")
    assert choose("cuda", says(machine())).runtime == "onnxruntime-cuda"
    with pytest.raises(
        MachineError, match=r"^--backend cuda: ONNX Runtime has no CUDA provider: see tumorscan doctor$"
    ):
        choose("cuda", says(machine(onnxruntime=NO_CUDA)))
    with pytest.raises(
        MachineError, match=r"^--backend tensorrt: no NVIDIA driver here: see tumorscan doctor$"
    ):
        choose("tensorrt", says(machine(driver=NO_DRIVER)))
    with pytest.raises(MachineError, match=r"^the run was begun with tensorrt: TensorRT is not installed$"):
        choose_runtime("tensorrt", says(machine(tensorrt=None)))
    with pytest.raises(UsageError, match="no backend 'abacus': choose from auto, tensorrt, cuda, openvino"):
        choose("abacus", says({}))


def test_only_gpus_that_the_runtime_knows_are_used() -> None:
    answers = machine(gpu(0, "NVIDIA GTX 1080", (6, 1)), gpu(1))
    assert [device.index for device in choose("tensorrt", says(answers)).devices] == [1]
    assert [device.index for device in choose("cuda", says(answers)).devices] == [0, 1]


def test_only_gpus_that_take_work_are_used() -> None:
    contexts = Answer("ok", {"gpus": [{"refused": "busy"}, {"free": 5, "registers": 801}]})
    choice = choose("auto", says(machine(gpu(0), gpu(1), contexts=contexts)))
    assert choice.devices == (Device(1, H100, 5),)


FIRST, SECOND, OTHER = Device(0, H100, 9 << 30), Device(1, L4, 9 << 30), Device(2, H100, 9 << 30)


def test_without_a_list_all_gpus_of_the_first_ones_model_are_used() -> None:
    devices = (FIRST, SECOND, OTHER)
    assert pick_gpus(devices, None) == (FIRST, OTHER)
    assert pick_gpus(devices, None, like=L4) == (SECOND,)
    assert pick_gpus(devices, "2,0,2") == (OTHER, FIRST)
    assert pick_gpus((FIRST, OTHER), "all") == (FIRST, OTHER)


@pytest.mark.parametrize(
    ("asked", "like", "kind", "said"),
    [
        (
            "all",
            None,
            UsageError,
            "0 is NVIDIA H100, 1 is NVIDIA L4.*: results differ between models, name GPUs of one model",
        ),
        ("0,1", None, UsageError, "results differ between models"),
        ("first", None, UsageError, "give all, or numbers such as 0,2"),
        ("0,7", None, MachineError, "GPU 7 is not there or takes no work; there are 0, 1, 2"),
        (None, "NVIDIA A100", MachineError, "begun on NVIDIA A100, and here is NVIDIA H100"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused(
    asked: str | None, like: str | None, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        pick_gpus((FIRST, SECOND, OTHER), asked, like)


def test_the_batch_shrinks_with_the_free_memory_of_the_fullest_gpu() -> None:
    assert batch_for([FIRST, OTHER], 2) == 64
    assert batch_for([FIRST, replace(OTHER, free=4 << 30)], 2) == 32
    assert batch_for([replace(FIRST, free=4 << 30)], 1) == 64
    assert batch_for([replace(FIRST, free=1)], 1) == 8
