"""Check the code that uses TensorRT against the signatures of the real bindings, old and new.

    python tests/typing/check_tensorrt.py [--wheels DIR]

The bindings are published as small wheels of their own. Their module loads without TensorRT once empty
libraries with the few C names it wants lie beside it, which takes a C compiler (`cc`); pybind11-stubgen then
reads its signatures, and mypy checks against them what it otherwise takes on trust. That the check bites is
shown first, on a file full of mistakes.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Bindings:
    """One published wheel, the package in it, and the libraries that its module is linked with."""

    distribution: str
    version: str
    package: str
    libraries: tuple[str, ...]


_TENSORRT = ("libnvinfer.so.{0}", "libnvinfer_plugin.so.{0}", "libnvonnxparser.so.{0}")
_RTX = ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1")


def _tensorrt(cuda: int, version: str) -> Bindings:
    libraries = tuple(name.format(version.split(".")[0]) for name in _TENSORRT)
    return Bindings(f"tensorrt-cu{cuda}-bindings", version, "tensorrt_bindings", libraries)


ALL = (
    _tensorrt(12, "10.8.0.43"),
    _tensorrt(13, "10.16.1.11"),
    _tensorrt(13, "11.4.0.106"),
    Bindings("tensorrt-rtx-cu13-bindings", "1.4.0.76", "tensorrt_rtx_bindings", _RTX),
    Bindings("tensorrt-rtx-cu13-bindings", "1.7.1.116", "tensorrt_rtx_bindings", _RTX),
)
WANTED = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
"""What `nm -D --undefined-only` says of the module and no other library has."""

MISTAKES: Mapping[str, str] = {
    "trt.Biulder(logger)": "attr-defined",
    "trt.Builder(logger).create_bulider_config()": "attr-defined",
    "trt.Builder(logger).create_network('strongly typed')": "arg-type",
    "trt.OnnxParser(logger, logger)": "arg-type",
    "trt.BuilderFlag.NO_SUCH_FLAG": "attr-defined",
}


def main() -> int:
    """Check every version; 0 if all is well, 1 with mypy's lines otherwise."""
    parser = argparse.ArgumentParser(description="Check the TensorRT code against the real bindings.")
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels; what it lacks is downloaded")
    wheels = parser.parse_args().wheels
    files = [path for path in sorted((ROOT / "engine").rglob("*.py")) if _uses_tensorrt(path)]
    if not files:
        sys.exit("no file of engine/ imports tensorrt: this check has nothing to do")
    print(f"{len(files)} files:", *(path.relative_to(ROOT) for path in files), flush=True)
    clean = [_check(bindings, wheels, files) for bindings in ALL]
    return 0 if all(clean) else 1


def _uses_tensorrt(path: Path) -> bool:
    return re.search(r"^\s*(import|from) tensorrt\b", path.read_text(), re.MULTILINE) is not None


def _check(bindings: Bindings, wheels: Path | None, files: list[Path]) -> bool:
    with tempfile.TemporaryDirectory(prefix="tensorrt-stubs-") as folder:
        work = Path(folder)
        _unpack(_wheel(bindings, wheels, work), bindings, work / "site")
        mended = _make_stubs(work / "site", work / "stubs")
        _see_that_it_bites(work)
        found = _mypy(work, files)
    print(
        f"{bindings.distribution} {bindings.version} ({mended} signatures mended): {found.splitlines()[-1]}"
    )
    clean = found.startswith("Success")
    if not clean:
        print(found, flush=True)
    return clean


def _wheel(bindings: Bindings, wheels: Path | None, work: Path) -> Path:
    """The wheel for this Python, from `wheels` or downloaded."""
    name = bindings.distribution.replace("-", "_")
    pattern = f"{name}-{bindings.version}-cp{sys.version_info.major}{sys.version_info.minor}-*.whl"
    have = sorted(wheels.glob(pattern)) if wheels is not None else []
    if not have:
        requirement = f"{bindings.distribution}=={bindings.version}"
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work), requirement])
        have = sorted(work.glob(pattern))
    if not have:
        sys.exit(f"{bindings.distribution} {bindings.version} has no wheel {pattern}")
    return have[0]


def _unpack(wheel: Path, bindings: Bindings, site: Path) -> None:
    """Lay the package out as `tensorrt`, the name that the code checked knows, with its empty libraries."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    package = (site / bindings.package).rename(site / "tensorrt")
    source = "".join(f"void {name}(void) {{}}\n" for name in WANTED)
    for library in bindings.libraries:
        _run(["cc", "-shared", "-nostdlib", "-x", "c", "-o", str(package / library), "-"], source=source)


def _make_stubs(site: Path, stubs: Path) -> int:
    """Write the stubs; how many signatures no parser takes (a parameter named `in`) and are left open."""
    command = [sys.executable, "-m", "pybind11_stubgen", "--ignore-all-errors", "-o", str(stubs), "tensorrt"]
    _run(command, folder=site, PYTHONPATH=str(site), LD_LIBRARY_PATH=str(site / "tensorrt"))
    mended = 0
    for path in stubs.rglob("*.pyi"):
        lines = path.read_text().splitlines()
        for index, line in enumerate(lines):
            if line.lstrip().startswith("def ") and not _parses(line.strip()):
                body = ":" if line.endswith(":") else ": ..."
                lines[index] = line[: line.index("(")] + "(*args, **kwargs)" + body
                mended += 1
        path.write_text("\n".join(lines) + "\n")
    return mended


def _parses(definition: str) -> bool:
    try:
        ast.parse(definition if definition.endswith("...") else f"{definition} ...")
    except SyntaxError:
        return False
    return True


def _see_that_it_bites(work: Path) -> None:
    path = work / "mistakes.py"
    head = "import tensorrt as trt\n\n\ndef wrong(logger: trt.ILogger) -> None:\n"
    path.write_text(head + "".join(f"    {line}\n" for line in MISTAKES))
    found = _mypy(work, [path])
    for number, (line, code) in enumerate(MISTAKES.items(), start=5):
        if not re.search(rf"mistakes\.py:{number}: error: .*\[{code}\]", found):
            sys.exit(f"the check is blind: mypy finds nothing wrong with {line}\n{found}")


def _mypy(work: Path, files: list[Path]) -> str:
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(work / "cache"), *map(str, files)]
    environment = {**os.environ, "MYPYPATH": str(work / "stubs")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode not in (0, 1):
        sys.exit(f"mypy failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def _run(command: list[str], source: str = "", folder: Path = ROOT, **environment: str) -> None:
    try:
        result = subprocess.run(
            command,
            input=source,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed")
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout}")


if __name__ == "__main__":
    sys.exit(main())
