"""A model's FP16 graph on ONNX Runtime's CUDA provider, for a GPU without TensorRT.

A provider that cannot be loaded is left out in silence, and what it has no kernel for is computed on the CPU
between two copies that wait: both are looked for and refused.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from engine.bundle import Model
from engine.errors import MachineError, UsageError
from engine.plans.half import PLAN_CONTRACT
from engine.runners.base import INPUT, SIDE, OutputSpec, Precision, first_line
from engine.runners.device import visible_gpu

_PROVIDER: Final = "CUDAExecutionProvider"
_INSTALL: Final = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_BATCH_DIMENSION: Final = "N"
_FATAL_ONLY: Final = 4
_ELEMENTS: Final[Mapping[str, str]] = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


class CudaModel:
    """An FP16 graph (`engine.plans.half.half_graph`) for GPU `device` of those that this process sees.

    The provider works in that GPU's primary context. Each runner is a session of its own, with its own copy
    of the weights and scratch memory that it takes itself. `prefer_nhwc` lays tensors out with their channels
    last. Only algorithms that give the same bits every time are used.

    Raises:
        MachineError: no driver, no such GPU, or an ONNX Runtime without the CUDA provider.
        UsageError: what is no FP16 graph of the model.
    """

    name = "onnxruntime-cuda"
    precision: Precision = "fp16"

    def __init__(self, graph: bytes, model: Model, *, device: int = 0, prefer_nhwc: bool = False) -> None:
        visible_gpu(device)
        self._ort, self._unloaded = _load()
        self.version: str = self._ort.__version__
        self.model: Model = model
        self.outputs: Mapping[str, OutputSpec] = _outputs(graph, model)
        self._graph = graph
        self._device = device
        self._looked = False
        self._options = {
            "cudnn_conv_algo_search": "HEURISTIC",
            "do_copy_in_default_stream": "1",
            "prefer_nhwc": str(int(prefer_nhwc)),
        }
        self.identity: Mapping[str, str | int] = {
            "graph_sha256": hashlib.sha256(graph).hexdigest(),
            **self._options,
        }

    def workspace(self, batch: int) -> int:
        """See `DeviceModel.workspace`; ONNX Runtime takes its scratch memory itself."""
        _check_batch(batch)
        return 0

    def make(self, stream: int, batch: int, workspace: int) -> CudaRunner:
        """See `DeviceModel.make`; ONNX Runtime has no use for the `workspace`."""
        del workspace
        _check_batch(batch)
        if stream == 0:
            raise ValueError("the null stream waits for all others: make a stream of its own")
        session = self._session(stream, batch) if self._looked else self._looked_at(stream, batch)
        tensors = {INPUT: OutputSpec(np.dtype(np.uint8), (SIDE, SIDE, 3)), **self.outputs}
        return CudaRunner(self._ort, session, tensors, self._device, batch)

    def _looked_at(self, stream: int, batch: int) -> Any:
        """The first session, whose optimised graph is looked at; those that follow have the same."""
        with tempfile.TemporaryDirectory(prefix="tumorscan-") as folder:
            optimised = Path(folder) / "optimised.onnx"
            session = self._session(stream, batch, optimised)
            if detour := host_copy(optimised):
                raise MachineError(
                    f"ONNX Runtime {self.version} computes a part of the {self.model} on the CPU ({detour}): "
                    "use another version of onnxruntime-gpu, or --backend openvino"
                )
        self._looked = True
        return session

    def _session(self, stream: int, batch: int, optimised: Path | None = None) -> Any:
        settings = self._ort.SessionOptions()
        settings.log_severity_level = _FATAL_ONLY  # errors are raised as well
        settings.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.use_deterministic_compute = True
        settings.intra_op_num_threads = 1
        settings.add_free_dimension_override_by_name(_BATCH_DIMENSION, batch)
        options = {**self._options, "device_id": str(self._device), "user_compute_stream": str(stream)}
        if optimised is not None:
            settings.optimized_model_filepath = str(optimised)
        try:
            session = self._ort.InferenceSession(
                self._graph, settings, providers=[(_PROVIDER, options)], enable_fallback=0
            )
        except Exception as error:  # the runtime's errors share no base of their own
            raise MachineError(
                f"ONNX Runtime {self.version} cannot make the {self.model} for batches of {batch} on the GPU "
                f"({first_line(error)}): choose a smaller --batch, or see in nvidia-smi what else it does"
            ) from error
        if _PROVIDER not in session.get_providers():
            raise MachineError(
                f"ONNX Runtime {self.version} cannot load its CUDA provider "
                f"({self._unloaded or 'it does not say why'}): {_INSTALL}"
            )
        self._check(session, batch)
        return session

    def _check(self, session: Any, batch: int) -> None:
        found = {output.name: (output.type, list(output.shape)) for output in session.get_outputs()}
        for name, spec in self.outputs.items():
            due = (_ELEMENTS[spec.dtype.name], [batch, *spec.shape])
            if found.get(name) != due:
                raise UsageError(
                    f"the FP16 graph of the {self.model} gives {name!r} as {found.get(name)} where {due} is "
                    "due: export the bundle again or choose another"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._graph = b""


class CudaRunner:
    """One session on one stream, and its buffers' addresses, which are bound again only where they change."""

    def __init__(
        self, ort: Any, session: Any, tensors: Mapping[str, OutputSpec], device: int, batch: int
    ) -> None:
        self.batch = batch
        self._session = session
        self._tensors = tensors
        self._device = device
        self._binding = session.io_binding()
        self._bound: dict[str, int] = {}
        self._settings = ort.RunOptions()
        self._settings.log_severity_level = _FATAL_ONLY
        self._settings.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def enqueue(self, pointers: Mapping[str, int]) -> None:
        """See `DeviceRunner.enqueue`."""
        if self._session is None:
            raise ValueError("enqueue() was called on a closed runner")
        for name, spec in self._tensors.items():
            address = int(pointers[name])
            if self._bound.get(name) != address:
                bind = self._binding.bind_input if name == INPUT else self._binding.bind_output
                bind(name, "cuda", self._device, spec.dtype, (self.batch, *spec.shape), address)
                self._bound[name] = address
        try:
            self._session.run_with_iobinding(self._binding, self._settings)
        except Exception as error:  # the runtime's errors share no base of their own
            raise MachineError(f"ONNX Runtime cannot run on the GPU: {first_line(error)}") from error

    def close(self) -> None:
        """See `DeviceRunner.close`."""
        self._binding = None
        self._session = None
        self._bound.clear()


def host_copy(graph: Path) -> str:
    """The first node of an optimised graph that copies from or to the host, in words; "" where none does."""
    import onnx

    nodes = onnx.load(graph, load_external_data=False).graph.node
    for node in nodes:
        if node.op_type in ("MemcpyToHost", "MemcpyFromHost"):
            users = [user for user in nodes if node.output[0] in user.input]
            there = f", for {users[0].op_type} {users[0].name}" if users else ""
            return f"node {node.name}: {node.op_type} of {node.input[0]}{there}"
    return ""


def _load() -> tuple[Any, str]:
    """ONNX Runtime with its CUDA libraries, and the first of these that could not be loaded ("": none)."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MachineError(f"ONNX Runtime cannot be loaded ({error}): {_INSTALL}") from error
    if _PROVIDER not in ort.get_available_providers():
        raise MachineError(
            f"ONNX Runtime {ort.__version__} has no CUDA provider: pip uninstall onnxruntime, then {_INSTALL}"
        )
    ort.set_default_logger_severity(_FATAL_ONLY)
    with redirect_stdout(StringIO()) as said:
        ort.preload_dlls()  # those that pip installed, which the system's loader does not know
    return ort, next(iter(said.getvalue().splitlines()), "")


def _outputs(graph: bytes, model: Model) -> Mapping[str, OutputSpec]:
    import onnx

    try:
        names = [output.name for output in onnx.load_model_from_string(graph).graph.output]
    except Exception as error:  # protobuf's errors share no base of their own
        raise UsageError(f"the FP16 graph of the {model} is no ONNX: {first_line(error)}") from error
    contract = PLAN_CONTRACT[model]
    if not names or not set(names) <= contract.keys():
        raise UsageError(
            f"the FP16 graph of the {model} gives {', '.join(names) or 'nothing'} where "
            f"{', '.join(contract)} are due: export the bundle again or choose another"
        )
    return {name: contract[name] for name in names}


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise UsageError(f"a batch of {batch} slices cannot be computed: choose 1 or more")
