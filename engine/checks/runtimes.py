"""What computes on the CPU, and what decodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.checks.finding import Facts, Finding, Status
from engine.probes import Answer

_ONNXRUNTIMES: Final = frozenset(
    {"onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-training", "onnxruntime-rocm",
     "onnxruntime-migraphx", "onnxruntime-qnn", "onnxruntime-directml", "ort-nightly", "ort-nightly-gpu"}
)  # fmt: skip
"""Distributions that all put their files into one folder."""


def look_at_decoding(answer: Answer) -> list[Finding]:
    """NumPy and OpenCV, without which no slice is read."""
    versions = ", ".join(f"{name} {version}" for name, version in answer.facts.items())
    return [
        Finding(
            group="runtimes",
            name="decoding",
            status="ok" if answer.ok else "fail",
            value=versions if answer.ok else answer.said,
            advice="" if answer.ok else "pip install --force-reinstall numpy opencv-python-headless",
            facts=dict(answer.facts),
        )
    ]


def look_at_openvino(answer: Answer | None) -> list[Finding]:
    """OpenVINO and what it says of the CPU; `answer` is None where it is not installed."""
    if answer is None or not answer.ok:
        value = "not installed" if answer is None else f"installed but not usable: {answer.said}"
        return [
            Finding(
                group="runtimes",
                name="openvino",
                status="missing" if answer is None else "fail",
                value=value,
                advice="pip install --force-reinstall openvino",
            )
        ]
    devices, capabilities = answer.facts["devices"], answer.facts["capabilities"]
    value = f"{answer.facts['version']}; devices: {', '.join(devices)}; CPU: {', '.join(capabilities)}"
    return [Finding(group="runtimes", name="openvino", status="ok", value=value, facts=dict(answer.facts))]


def look_at_onnxruntime(answer: Answer | None, packages: Mapping[str, str]) -> list[Finding]:
    """ONNX Runtime, its providers, and packages of it that overwrite each other."""
    here: Facts = {name: packages[name] for name in sorted(_ONNXRUNTIMES & packages.keys())}
    facts: Facts = {"packages": here}
    status: Status
    if answer is None:
        status, value, advice = "missing", "not installed", "pip install onnxruntime"
    elif answer.ok:
        facts |= answer.facts
        providers = [name.removesuffix("ExecutionProvider") for name in answer.facts["providers"]]
        status, value, advice = "ok", f"{answer.facts['version']}; providers: {', '.join(providers)}", ""
    else:
        status, value = "fail", f"installed but not usable: {answer.said}"
        advice = "pip install --force-reinstall onnxruntime"
    if len(here) > 1:
        status = "warn" if status == "ok" else status
        value += f"; {' and '.join(here)} are both installed, into one folder"
        wanted = "onnxruntime-gpu" if "onnxruntime-gpu" in here else "onnxruntime"
        advice = f"keep one: pip uninstall -y {' '.join(here)}, then pip install {wanted}"
    return [
        Finding(group="runtimes", name="onnxruntime", status=status, value=value, advice=advice, facts=facts)
    ]
