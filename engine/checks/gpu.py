"""The driver, its GPUs, and what computes on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine.checks.finding import Facts, Finding, Status, gib
from engine.plans.sidecar import Flavour
from engine.plans.toolkit import OLDEST_CAPABILITY
from engine.probes import Answer


def gpus(driver: Answer) -> list[dict[str, Any]]:
    """The GPUs in the driver's answer, as fields of `engine.driver.Gpu`."""
    return list(driver.facts.get("gpus", ()))


def look_at_driver(driver: Answer, contexts: Answer | None = None) -> list[Finding]:
    """The driver, and a finding a GPU; `contexts` is what these said when they were used, if they were."""
    if driver.state == "absent":
        return [Finding(group="GPU", name="driver", status="missing", value=driver.said)]
    if driver.state == "refused":
        return [Finding(group="GPU", name="driver", status="fail", value=driver.said)]
    if driver.state == "failed":
        said, advice = f"installed but not usable: {driver.said}", "see that nvidia-smi works, or reboot"
        return [Finding(group="GPU", name="driver", status="fail", value=said, advice=advice)]
    major, minor = driver.facts["cuda"]
    release = driver.facts["release"]
    return [
        Finding(
            group="GPU",
            name="driver",
            status="ok",
            value=f"{release or 'release unknown'}, for CUDA up to {major}.{minor}",
            facts={"release": release, "cuda": [major, minor]},
        ),
        *(_look_at_gpu(gpu, here) for gpu, here in zip(gpus(driver), _used(driver, contexts), strict=True)),
    ]


def _used(driver: Answer, contexts: Answer | None) -> list[dict[str, Any]]:
    """What each GPU said when it was used, {} where it was not."""
    if contexts is None:
        return [{} for _ in gpus(driver)]
    if not contexts.ok:
        return [{"refused": contexts.said} for _ in gpus(driver)]
    return list(contexts.facts["gpus"])


def _look_at_gpu(gpu: Mapping[str, Any], used: Mapping[str, Any]) -> Finding:
    major, minor = gpu["compute_capability"]
    status: Status = "ok"
    value, advice = f"{gpu['name']}, compute capability {major}.{minor}, {gib(gpu['memory'])}", ""
    if "free" in used:
        value += f", {gib(used['free'])} free"
    if used.get("registers"):
        status = "warn"
        advice = (
            f"the driver does not pagelock memory where it lies (CUDA error {used['registers']}): slices are "
            "copied once more on their way"
        )
    if (major, minor) < OLDEST_CAPABILITY:
        status, advice = "warn", "TensorRT 10.5 and newer need compute capability 7.5: use the CPU"
    if "refused" in used:
        status, value, advice = "fail", f"{value}; takes no work: {used['refused']}", "see nvidia-smi"
    name = f"gpu-{gpu['index']}"
    return Finding(group="GPU", name=name, status=status, value=value, advice=advice, facts={**gpu, **used})


def look_at_tensorrt(
    flavour: Flavour, answer: Answer | None, driver: Answer, packages: Mapping[str, str]
) -> list[Finding]:
    """One flavour of TensorRT; `answer` is None where it is not installed."""
    facts: Facts = {"package": packages.get(flavour, "")}
    advice = ""
    status: Status = "fail"
    if answer is None:
        status, value = "missing", "not installed"
        if gpus(driver) and flavour == "tensorrt":
            advice = "pip install 'tumorscan[gpu,tensorrt]', or use NVIDIA's TensorRT container image"
    elif answer.state == "refused":
        value = answer.said
    elif not answer.ok:
        value = f"{packages.get(flavour, '')} is installed but not usable: {answer.said}"
        advice = f"pip install --force-reinstall {flavour}, or uninstall it"
    else:
        facts |= answer.facts
        status, value, advice = _look_at_use(flavour, answer, driver, packages)
    return [Finding(group="GPU", name=flavour, status=status, value=value, advice=advice, facts=facts)]


def _look_at_use(
    flavour: Flavour, answer: Answer, driver: Answer, packages: Mapping[str, str]
) -> tuple[Status, str, str]:
    """Status, value and advice of a TensorRT that loads: what it is good for here."""
    version = answer.facts["version"]
    needed = _cuda_of(flavour, packages)
    if driver.ok and needed and needed > driver.facts["cuda"][0]:
        supported = ".".join(map(str, driver.facts["cuda"]))
        return (
            "fail",
            f"{version} is made for CUDA {needed}, the driver is too old: it goes up to {supported}",
            f"update the NVIDIA driver, or pip install {flavour}-cu{driver.facts['cuda'][0]}",
        )
    if flavour == "tensorrt-rtx":
        return "ok", f"{version}, plans for compute capability {', '.join(answer.facts['targets'])}", ""
    if not gpus(driver):
        return "warn", f"{version}, of no use without a GPU: it builds plans for the one that is here", ""
    return "ok", version, ""


def _cuda_of(flavour: str, packages: Mapping[str, str]) -> int | None:
    """The CUDA major version that the wheels of a flavour are made for, as their names tell."""
    found = [match for name in packages if (match := re.fullmatch(rf"{flavour}-cu(\d+)(-.+)?", name))]
    return max((int(match[1]) for match in found), default=None)


def look_at_pycuda(answer: Answer | None, driver: Answer) -> list[Finding]:
    """pycuda, which runs plans; `answer` is None where it is not installed."""
    advice = ""
    status: Status
    if answer is None:
        status, value = "missing", "not installed"
        advice = "pip install 'tumorscan[gpu]'" if gpus(driver) else ""
    elif answer.ok:
        status, value = "ok", answer.facts["version"]
    elif driver.ok:
        status, value = "fail", f"installed but not usable: {answer.said}"
        advice = "build it again for this CUDA: pip install --force-reinstall --no-cache-dir pycuda"
    else:
        status, value = "warn", f"installed, but does not load without the driver: {answer.said}"
    facts: Facts = dict(answer.facts) if answer else {}
    return [Finding(group="GPU", name="pycuda", status=status, value=value, advice=advice, facts=facts)]
