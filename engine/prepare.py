"""What GPUs need before a run's first slice: plans found or built, and FP16 proven on the run's own slices.

All of it happens in a process of its own, which makes a CUDA context: a fault of the GPU, or of TensorRT's
builder, ends that process and not the run. It is started as `python -m engine.prepare PARENT`, reads a
`Request` from standard input, and writes a JSON array a line:

    ["watch", text, done]         what it is at, and how much of that is done, 0 to 1, or null
    ["ready", start, proof]       a `Start` for batches of that size, and how FP16 was proven
    ["failed", kind, text]        as engine.gpu.worker tells it
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.backend import Runtime
from engine.child import child_environment, death, die_with, last_line
from engine.errors import MachineError
from engine.gpu.start import Graphs, Plans, Start
from engine.gpu.worker import KINDS, described
from engine.stop import Stop, StoppedError

if TYPE_CHECKING:
    from engine.proof import Watch

MODULE: Final = "engine.prepare"
"""What the process runs."""
_POLL_SECONDS: Final = 0.25
_END_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Request:
    """What to prepare, for GPUs of one model, of which `visible` names one as CUDA_VISIBLE_DEVICES does.

    `slices` are paths, "latin-1", that FP16 is compared with float32 on; where none of them can be read,
    drawn slices are taken. `continued` plans are those of the cache, and nothing is built.
    """

    bundle: str
    runtime: Runtime
    visible: str
    batch: int
    plan_cache: str | None
    slices: tuple[str, ...]
    continued: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """The models to load, and how their FP16 was proven: "weakly proven on 64 slices of the input"."""

    models: Plans | Graphs
    proof: str


def prepare(request: Request, watch: Watch, stop: Stop) -> Prepared:
    """Have it done, and `watch` hear of it. Waits as long as it takes.

    Raises:
        StoppedError: `stop` was asked for before it was done.
        MachineError: what is not installed or does not fit, plans that fail their proof, a fault of the GPU.
        UsageError: plans or a bundle that are refused.
    """
    complaints = os.memfd_create("tumorscan-prepare-stderr", os.MFD_CLOEXEC)
    try:
        process = _started(request, complaints)
        assert process.stdout is not None
        try:
            with process.stdout, closing(_Lines(process.stdout.fileno())) as lines:
                answer = _heard(lines, watch, stop)
        finally:
            _end(process)
        if answer is None:
            said = last_line(complaints)
            raise MachineError(
                f"the process that prepares the GPU {death(process.returncode)}"
                f"{f' ({said})' if said else ''}: see dmesg, or use --backend openvino"
            )
    finally:
        os.close(complaints)
    kind, *rest = answer
    if kind == "failed":
        word, text = rest
        raise KINDS[word](text)
    start, proof = rest
    return Prepared(Start.decode(start.encode()).models, proof)


def _started(request: Request, complaints: int) -> subprocess.Popen[bytes]:
    with os.fdopen(os.memfd_create("tumorscan-prepare", os.MFD_CLOEXEC), "w+b") as asked:
        asked.write(json.dumps(asdict(request)).encode())
        asked.seek(0)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, str(os.getpid())],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**child_environment(), "CUDA_VISIBLE_DEVICES": request.visible},
            process_group=0,  # Ctrl-C is this process's to deal with
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:  # stuck in the kernel, as in a call into a broken driver
        process.returncode = -signal.SIGKILL  # nobody waits for it any more


def _heard(lines: _Lines, watch: Watch, stop: Stop) -> list[Any] | None:
    """The answer; None where it ended without one."""
    while (line := lines.next(_POLL_SECONDS)) != b"":
        stop.look_at_clock()
        if stop.asked.is_set():
            raise StoppedError
        if line is None:
            continue
        kind, *rest = json.loads(line)
        if kind != "watch":
            return [kind, *rest]
        watch(*rest)
    return None


class _Lines:
    """The lines of a pipe, waited for with a limit."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(descriptor, selectors.EVENT_READ)

    def next(self, timeout: float) -> bytes | None:
        """The next line; None when none came in time, b"" at the end."""
        while b"\n" not in self._held:
            if not self._selector.select(timeout):
                return None
            piece = os.read(self._descriptor, 1 << 16)
            if not piece:
                return b""
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        return line

    def close(self) -> None:
        self._selector.close()


# What follows runs in the process.


def main() -> None:
    """Prepare what the parent asks for."""
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries greet on standard output
    die_with(int(sys.argv[1]))

    def tell(*message: object) -> None:
        os.write(answers, json.dumps(message).encode() + b"\n")

    try:
        fields = json.loads(sys.stdin.buffer.read())
        request = Request(**{**fields, "slices": tuple(fields["slices"])})
        start, proof = _prepared(request, lambda text, done: tell("watch", text, done))
    except Exception as error:
        tell("failed", *described(error))
    else:
        tell("ready", start.encode().decode(), proof)


def _prepared(request: Request, watch: Watch) -> tuple[Start, str]:
    slices = _readable(request)
    if request.runtime == "onnxruntime-cuda":
        return Start(0, 1, request.batch, None, Graphs(Path(request.bundle))), _prove_graphs(
            request, slices, watch
        )
    from engine.build import BuildOptions, build_plans
    from engine.plans.cache import cache_folder

    cache = cache_folder(None if request.plan_cache is None else Path(request.plan_cache))
    outcome = build_plans(
        BuildOptions(
            bundle=Path(request.bundle),
            batch=request.batch,
            flavour=request.runtime,
            plan_cache=cache,
            inputs=slices,
            called="the input",
            prove=True,
            only_cached=request.continued,
        ),
        watch,
    )
    by_model = {made.plan.record.model: made.plan for made in outcome.plans}
    plans = Plans(cache, by_model["classifier"], by_model["segmenter"])
    proof = plans.segmenter.record.proof
    return Start(0, 1, request.batch, None, plans), f"{proof.status} on {proof.slices}"


def _readable(request: Request) -> tuple[str, ...]:
    """The slices, each once, if there is one among them that can be read."""
    from engine.trial import read_slices

    named = dict.fromkeys(os.fsdecode(path.encode("latin-1")) for path in request.slices)
    paths = [path for path in named if Path(path).exists()]
    some = next(read_slices((), map(os.fsencode, paths), on_bad=lambda *_: None), None)
    return () if some is None else tuple(paths)


def _prove_graphs(request: Request, slices: tuple[str, ...], watch: Watch) -> str:
    """Compare what the CUDA provider computes with float32. MachineError where it is too far off."""
    from engine.bundle import Bundle
    from engine.cascade import OperatingPoint
    from engine.parity import FP16_LIMITS, standing
    from engine.proof import proof_slices
    from engine.trial import open_cascade, open_cuda, trial

    if request.continued:
        return "proven when the run was begun"
    bundle = Bundle.load(Path(request.bundle))
    point = OperatingPoint.of(bundle, gated=False)
    watch("loading the models on the GPU", None)
    with (
        open_cascade(bundle, "onnxruntime", "fp32", point) as reference,
        open_cuda(bundle, point, batch=request.batch) as running,
        proof_slices(slices, watch) as blocks,
    ):
        report = trial(reference, running, blocks)
    of = f"{report.slices} slices of {'the input' if slices else 'drawn slices'}"
    if broken := report.broken(FP16_LIMITS):
        raise MachineError(
            f"ONNX Runtime's CUDA provider fails its proof against float32 on {of} ({'; '.join(broken)}): "
            "use --backend openvino"
        )
    return f"{standing(report, FP16_LIMITS)} on {of}"


if __name__ == "__main__":
    main()
