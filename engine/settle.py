"""What a run is settled on before it begins: backend, GPUs, precision, thresholds; and its identity."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from pydantic import JsonValue

from engine.backend import Choice, Device, Runtime, asker, choose, choose_runtime
from engine.bundle import Bundle
from engine.cascade import OperatingPoint
from engine.errors import MachineError, UsageError
from engine.flips import NO_FLIPS
from engine.ledger_readers import has_rows, stored_identity
from engine.outputs import runjson
from engine.outputs.parquet import expect_parquet
from engine.outputs.pseudonyms import Pseudonyms
from engine.run import BLOCK, LEDGER, GpuUse, Options, Plan
from engine.runners import choose_int8, choose_precision, cpu_flags
from engine.runners.base import Precision
from engine.scorer import gate_for_gpu
from engine.sources.channels import Patterns
from engine.text import shown

SHOWN_INPUTS = 20
"""Of more INPUTs the ledger keeps a hash, as it may have to show them in one line."""
_GEOMETRY = "letterbox-256"
"""Names how slices of other sizes are scaled; part of a run's identity."""
_CPU_PRECISIONS = ("fp32", "bf16")


def earlier_identity(options: Options) -> dict[str, object] | None:
    """The identity of the run to continue. One that came to no row has decided nothing, so it is none."""
    path = options.ledger
    stored = None if options.fresh else stored_identity(path)
    return stored if stored is not None and has_rows(path) else None


def settle(
    options: Options,
    bundle: Bundle,
    earlier: Mapping[str, object] | None,
    failed: Mapping[Runtime, str] | None = None,
) -> Plan:
    """What `options` come to here; a continuation takes what it was begun with.

    `failed` are runtimes that did not come up, and why: "auto" does without them.

    Raises UsageError for options that are none or contradict, MachineError for a GPU that is not here.
    """
    operating = OperatingPoint.of(
        bundle,
        gate_threshold=options.threshold,
        mask_threshold=options.mask_threshold,
        gated=options.gate,
        probabilities=options.save_probabilities,
        flips=options.flips,
    )
    refuse_outputs(options)
    choice = _choice(options, operating, earlier, failed or {})
    if choice.runtime is not None:
        gate_for_gpu(operating)
    elif options.gpus is not None:
        raise MachineError(f"--gpus {options.gpus}: {choice.why or f'--backend {choice.backend} uses none'}")
    return Plan(
        bundle=bundle,
        backend=choice.backend,
        precision=_precision(options, bundle, choice, earlier),
        operating=operating,
        continued=earlier is not None,
        batch=options.batch or BLOCK,
        why=choice.why,
        gpus=None if choice.runtime is None else _gpu_use(options, choice, choice.runtime, earlier),
    )


def with_devices(options: Options, use: GpuUse) -> GpuUse:
    """The same with GPUs to use, which those of a continued run are not looked for before. MachineError."""
    if use.devices:
        return use
    return replace(
        use, devices=pick_gpus(choose_runtime(use.runtime, asker()).devices, options.gpus, use.model)
    )


def identity(options: Options, plan: Plan) -> dict[str, object]:
    """What decides the bytes of the results; of a list its presence, as it may be longer than memory.

    On GPUs it is not whole before the models are loaded (`GpuUse.loaded`).
    """
    return {
        "inputs": _inputs(options),
        "files_from": options.files_from is not None or options.listed is not None,
        "bundle": plan.bundle.sha256,
        "backend": plan.backend,
        **_versions(options, plan),
        "precision": list(plan.precision),
        "gate": plan.operating.gated,
        "threshold": plan.operating.gate_threshold,
        "mask_threshold": plan.operating.mask_threshold,
        "min_pixels": plan.operating.min_pixels,
        "flips": plan.operating.flips.mirrors,
        "flip_classifier": plan.operating.flips.classifier,
        "geometry": _GEOMETRY,
        "channels": None if options.channels is None else Patterns.parse(options.channels).text,
        "masks": options.masks,
        "components": options.components.text,
        "overlays": options.overlays,
        "probabilities": options.save_probabilities,
        "anonymise": None if options.anonymise is None else Pseudonyms.open(options.anonymise).fingerprint,
        **({} if options.shard is None else {"shard": options.shard.text}),
    }


def refuse_outputs(options: Options) -> None:
    """Raise UsageError for outputs that contradict, MachineError for one that cannot be written here."""
    if options.parquet:
        expect_parquet()
    if options.overlays and not options.components.keeps_all:
        raise UsageError(
            f"--components {options.components.text}: overlays are drawn before a slice's volume is known: "
            "leave out --overlays, or --components"
        )
    if options.anonymise is None:
        return
    if options.anonymise.resolve().is_relative_to(options.out.resolve()):
        raise UsageError(f"--anonymise {options.anonymise} lies in the output: name one that stays private")
    if (options.out / LEDGER).exists():
        raise UsageError(f"{options.out} holds a run that names its files: give another --out")


def _versions(options: Options, plan: Plan) -> dict[str, JsonValue]:
    """What computes, to the bit: of GPUs also their model, the batch, and each model's plan or options."""
    use = plan.gpus
    if use is None:
        return {"backend_version": runjson.package_versions().get(plan.backend, "")}
    asked: dict[str, JsonValue] = {} if options.batch is None else {"batch": options.batch}
    return {"runtime": use.runtime, "gpu": use.model, **(use.loaded or {}), **asked}


def _choice(
    options: Options,
    operating: OperatingPoint,
    earlier: Mapping[str, object] | None,
    failed: Mapping[Runtime, str],
) -> Choice:
    backend = options.backend
    if earlier is not None and backend == "auto":
        backend = str(earlier["backend"])
    if earlier is not None and backend == earlier["backend"]:
        return Choice(backend, "", cast("Runtime | None", earlier.get("runtime")))
    return choose(backend, asker(), cpu=_of_the_cpu(options, operating), failed=failed)


def _of_the_cpu(options: Options, operating: OperatingPoint) -> str:
    """What is asked for that no GPU does, "" for nothing."""
    if options.precision not in ("auto", "fp16"):
        return f"--precision {options.precision} is the CPU's"
    if operating.flips != NO_FLIPS:
        return f"--flips {operating.flips.mirrors} is the CPU's"
    if not operating.exact_mask:
        return f"--mask-threshold {operating.mask_threshold:g} is the CPU's"
    if operating.probabilities:
        return "--save-probabilities is the CPU's"
    return ""


def _precision(
    options: Options, bundle: Bundle, choice: Choice, earlier: Mapping[str, object] | None
) -> tuple[Precision, Precision]:
    asked = options.precision
    if choice.runtime is not None:
        if asked not in ("auto", "fp16"):
            raise UsageError(f"--precision {asked}: a GPU computes in fp16; leave it out")
        return "fp16", "fp16"
    if asked == "auto" and earlier is not None:
        return cast("tuple[Precision, Precision]", tuple(cast("list[str]", earlier["precision"])))
    if asked == "auto":
        return choose_precision(bundle, choice.backend, cpu_flags())
    if asked == "fp16":
        raise UsageError(f"--precision fp16 is a GPU's: {choice.why or f'{choice.backend} is of the CPU'}")
    if asked == "int8":
        return choose_int8(bundle, choice.backend, cpu_flags())
    if asked not in _CPU_PRECISIONS:
        raise UsageError(f"--precision {asked}: this bundle and version have auto, fp32, bf16 and int8")
    return cast("Precision", asked), cast("Precision", asked)


def _gpu_use(
    options: Options, choice: Choice, runtime: Runtime, earlier: Mapping[str, object] | None
) -> GpuUse:
    if earlier is not None and choice.backend == earlier["backend"]:
        loaded = {name: cast("JsonValue", earlier[name]) for name in ("backend_version", "batch", "models")}
        model, batch = str(earlier["gpu"]), cast("int", earlier["batch"])
        return GpuUse(runtime, model, (), options.lanes, batch, options.plan_cache, loaded)
    devices = pick_gpus(choice.devices, options.gpus)
    return GpuUse(runtime, devices[0].name, devices, options.lanes, options.batch, options.plan_cache)


def pick_gpus(devices: tuple[Device, ...], asked: str | None, like: str | None = None) -> tuple[Device, ...]:
    """The GPUs that `asked` means: "all", or indexes; None for all of the first one's model.

    `like` is the model that a run was begun on. Models differ in the last bits of what they compute, and a
    table is to be the same whichever GPU took a slice: one model at a time.

    Raises UsageError for what is no list and for several models, MachineError for a GPU that is not here.
    """
    if asked is None:
        name = like or devices[0].name
        chosen = tuple(device for device in devices if device.name == name)
        if not chosen:
            raise MachineError(
                f"the run was begun on {name}, and here is {devices[0].name}: continue it there, or start "
                "over with --fresh"
            )
        return chosen
    if asked != "all" and not re.fullmatch(r"\d+(,\d+)*", asked):
        raise UsageError(f"--gpus {asked}: give all, or numbers such as 0,2 as nvidia-smi -L counts them")
    numbers = [device.index for device in devices] if asked == "all" else [int(n) for n in asked.split(",")]
    by_number = {device.index: device for device in devices}
    if missing := [number for number in numbers if number not in by_number]:
        raise MachineError(
            f"--gpus {asked}: GPU {missing[0]} is not there or takes no work; there are "
            f"{', '.join(map(str, by_number))}"
        )
    chosen = tuple(by_number[number] for number in dict.fromkeys(numbers))
    if len({device.name for device in chosen}) > 1:
        each = ", ".join(f"{device.index} is {device.name}" for device in chosen)
        raise UsageError(f"--gpus {asked}: {each}: results differ between models, name GPUs of one model")
    return chosen


def _inputs(options: Options) -> list[str]:
    """INPUT as typed, without / at the end; a shell's long list of files by its first and their hash."""
    inputs = [shown(text.rstrip("/") or text[:1]) for text in options.inputs]
    if len(inputs) <= SHOWN_INPUTS:
        return inputs
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()
    return [inputs[0], f"and {len(inputs) - 1} more of sha256 {digest}"]
