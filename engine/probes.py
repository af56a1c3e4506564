"""Questions that may crash or hang whoever asks: each is put in a process of its own, with a time limit.

A half-installed CUDA ends a process that imports TensorRT, and a stuck driver never answers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Final, Literal

from engine.child import import_path

Subject = Literal[
    "driver", "contexts", "tensorrt", "tensorrt-rtx", "pycuda", "decoding", "openvino", "onnxruntime"
]

MODULES: Final[Mapping[Subject, str]] = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
    "pycuda": "pycuda",
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
}
"""The module that has to be there for a question to make sense."""
LIMIT_SECONDS: Final = 20.0
"""Many times what the slowest import takes from a cold disk."""
_REAP_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question: `facts` when it is "ok", else one line in `said`.

    "absent" is a driver or a GPU that is not there, "refused" what one of our own errors says, with what to
    do; "failed" is any other exception, a crash, or no answer in time.
    """

    state: Literal["ok", "absent", "refused", "failed"]
    facts: Mapping[str, Any]
    said: str = ""

    @property
    def ok(self) -> bool:
        """Whether there are facts."""
        return self.state == "ok"


def ask(subject: Subject, limit: float = LIMIT_SECONDS) -> Answer:
    """Put one question to a new process of this interpreter and wait for at most `limit` seconds."""
    try:
        return _ask(subject, limit)
    except OSError as error:
        return Answer("failed", {}, f"no process can be started to ask: {error.strerror}")


def _ask(subject: Subject, limit: float) -> Answer:
    with _scratch() as answers, _scratch() as complaints:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine.probes", subject],
            stdin=subprocess.DEVNULL,
            stdout=answers,
            stderr=complaints,
            env={**os.environ, "PYTHONPATH": import_path()},
        )
        ended = _wait(process, limit)
        with suppress(ValueError, TypeError):  # nothing there, or what a library wrote before it crashed
            return Answer(**json.loads(_written(answers).rpartition("\n")[2]))
        lines = [line.strip() for line in _written(complaints).splitlines() if line.strip()]
    return Answer("failed", {}, f"{ended}{f' ({lines[-1]})' if lines else ''}")


def _scratch() -> Any:
    """A file in memory: a pipe would be held open by whatever a killed process has started."""
    return os.fdopen(os.memfd_create("tumorscan-probe", os.MFD_CLOEXEC), "r+b", buffering=0)


def _written(file: Any) -> str:
    return bytes(os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)).decode(errors="replace")


def _wait(process: subprocess.Popen[bytes], limit: float) -> str:
    """How the process ended."""
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.wait(_REAP_SECONDS)
        except subprocess.TimeoutExpired:  # stuck in the kernel, as in a call into a broken driver
            process.returncode = -signal.SIGKILL  # nobody waits for it any more
        return f"it gives no answer in {limit:g} s"
    if status < 0:
        return f"it crashes the process that loads it ({signal.strsignal(-status)})"
    return f"it ends the process that loads it with status {status}"


def _driver() -> dict[str, Any]:
    from engine.driver import probe_driver

    return asdict(probe_driver())


def _contexts() -> dict[str, Any]:
    """Of each GPU, what it says when it is used: its free memory in bytes, and whether it reads ours."""
    from engine.driver import probe_driver

    return {"gpus": [_context(gpu.index) for gpu in probe_driver().gpus]}


def _context(index: int) -> dict[str, Any]:
    import mmap

    import numpy as np

    from engine.errors import MachineError
    from engine.gpu.device import open_device

    memory = os.memfd_create("tumorscan-probe", os.MFD_CLOEXEC)
    os.posix_fallocate(memory, 0, mmap.PAGESIZE)
    page = np.frombuffer(mmap.mmap(memory, mmap.PAGESIZE), np.uint8)
    try:
        with open_device(index) as device:
            return {"free": device.free_memory(), "registers": device.register(page)}
    except MachineError as error:
        return {"refused": str(error)}


def _tensorrt() -> dict[str, Any]:
    from engine.plans.toolkit import load_toolkit

    return {"version": load_toolkit("tensorrt").version}


def _tensorrt_rtx() -> dict[str, Any]:
    from engine.plans.toolkit import build_targets, load_toolkit

    toolkit = load_toolkit("tensorrt-rtx")
    return {"version": toolkit.version, "targets": list(build_targets(toolkit))}


def _pycuda() -> dict[str, Any]:
    import pycuda.driver  # noqa: F401 - loads libcuda

    return {"version": version("pycuda")}


def _decoding() -> dict[str, Any]:
    import cv2
    import numpy as np

    return {"numpy": np.__version__, "opencv": cv2.__version__}


def _openvino() -> dict[str, Any]:
    import openvino as ov

    core = ov.Core()
    return {
        "version": str(ov.get_version()),
        "devices": list(core.available_devices),
        "capabilities": list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
    }


def _onnxruntime() -> dict[str, Any]:
    import onnxruntime as ort

    return {"version": str(ort.__version__), "providers": list(ort.get_available_providers())}


_QUESTIONS: Final[Mapping[Subject, Callable[[], dict[str, Any]]]] = {
    "driver": _driver,
    "contexts": _contexts,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
    "pycuda": _pycuda,
    "decoding": _decoding,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}


def _answer(subject: Subject) -> Answer:
    from engine.driver import NoGpuError
    from engine.errors import MachineError

    try:
        return Answer("ok", _QUESTIONS[subject]())
    except NoGpuError as error:
        return Answer("absent", {}, str(error))
    except MachineError as error:
        return Answer("refused", {}, str(error))
    except BaseException as error:  # packages have been seen to call sys.exit() while they are imported
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Answer("failed", {}, ": ".join([type(error).__name__, *lines[:1]]))


def _main(subject: Subject) -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries greet on standard output
    os.write(answers, b"\n" + json.dumps(asdict(_answer(subject))).encode())
    os._exit(0)  # what is half installed may also crash while it is unloaded


if __name__ == "__main__":
    _main(sys.argv[1])  # type: ignore[arg-type]
