"""What the real bindings look like, for the double to be held against: bindings.json, and how it is made.

    python -m tests.double.bindings pycuda.driver tensorrt tensorrt_rtx

prints it of those of them that are named. No GPU is needed: pycuda and the wheels of TensorRT's bindings load
once empty libraries with the C names they want lie beside them (see tests/typing/check_tensorrt.py).

A function is a list of its overloads, each told by its parameters without self, "dest, src, stream=": one
with = may be left out, _ has no name to give it by; none at all is a class that only the bindings make. An
attribute or class is null, an enumeration its members.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

Shape = None | list[str] | dict[str, int]
Table = dict[str, Shape]

_SPECIAL = ("__init__", "__int__", "__index__")


def recorded() -> Mapping[str, Table]:
    """The table of each of the bindings that were looked at, by name and version."""
    tables: Mapping[str, Table] = json.loads(Path(__file__).with_name("bindings.json").read_text())
    return tables


def double_table(module: ModuleType) -> Table:
    """All that a module of the double shows."""
    table: Table = {}
    for name, value, holder in _shown(module):
        if isinstance(value, type) and hasattr(value, "__members__"):
            table[name] = {member: item.value for member, item in value.__members__.items()}
        elif callable(value) or isinstance(value, classmethod):
            table[name] = [", ".join(_parameters(value, bound=holder is None))]
        else:
            table[name] = None
    return table


def real_table(module: ModuleType, names: list[str]) -> Table:
    """What the real module has of these names, from the docstrings of Boost.Python and pybind11."""
    table: Table = {}
    for name in names:
        holder, _, last = name.rpartition(".")
        try:
            of = _attribute(module, holder)
            value = getattr(of, last)
        except AttributeError:
            continue
        if isinstance(value, type) and hasattr(value, "__members__"):
            table[name] = {member: int(item) for member, item in value.__members__.items()}
        elif callable(value) and not isinstance(value, type):
            is_static = not holder or isinstance(inspect.getattr_static(of, last), staticmethod)
            table[name] = _overloads(last, value.__doc__ or "", is_static)
        else:
            table[name] = None
    return table


def _shown(module: ModuleType) -> Iterator[tuple[str, Any, type | None]]:
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if not isinstance(value, type) or hasattr(value, "__members__"):
            yield name, value, None
            continue
        yield name, None, None
        yield from (
            (f"{name}.{each}", inspect.getattr_static(value, each), value)
            for each in dir(value)
            if (not each.startswith("_") or each in _SPECIAL) and _own(value, each)
        )


def _own(kind: type, name: str) -> bool:
    here = inspect.getattr_static(kind, name)
    return not any(vars(base).get(name) is here for base in (object, BaseException, Exception, tuple))


def _parameters(function: Any, *, bound: bool) -> list[str]:
    parameters = list(inspect.signature(getattr(function, "__func__", function)).parameters.values())
    given = []
    for parameter in parameters if bound else parameters[1:]:
        name = "_" if parameter.kind is parameter.POSITIONAL_ONLY else parameter.name
        given.append(name if parameter.default is parameter.empty else f"{name}=")
    return given


def _overloads(name: str, text: str, is_static: bool) -> list[str]:
    found: dict[str, None] = {}
    for line in text.splitlines():
        match = re.match(rf"(?:\d+\. )?{re.escape(name)}\((.*)\) -> ", line)
        if match and match[1] != "*args, **kwargs":
            boost = re.search(r" \(\w+\)\w", f" {match[1]}") is not None or line.rstrip().endswith(" :")
            given = _boost(match[1]) if boost else _pybind(match[1])
            found[", ".join(given if is_static else given[1:])] = None
    return list(found)


def _boost(text: str) -> list[str]:
    """Of "(T)a, (T)b [, (T)c=None]"."""
    given = []
    for match in re.finditer(r"\(\w+\)(\w+)", text):
        name = "_" if re.fullmatch(r"arg\d+", match[1]) else match[1]
        given.append(f"{name}=" if "[" in text[: match.start()] else name)
    return given


def _pybind(text: str) -> list[str]:
    """Of "self: T, a: T[x, y], b: T = <X.Y: 0>"."""
    flat = re.sub(r"<[^<>]*>", "X", text)
    while (shorter := re.sub(r"\[[^\[\]]*\]|\([^()]*\)", "", flat)) != flat:
        flat = shorter
    parts = [part.strip() for part in flat.split(",")] if flat.strip() else []
    return [part.partition(":")[0] + ("=" if "=" in part else "") for part in parts]


def _attribute(module: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        module = getattr(module, name)
    return module


def main() -> None:
    """Print the tables of the modules that are named."""
    from tests.double.double import Double

    with Double():
        doubles = {
            name: double_table(importlib.import_module(name)) for name in ("pycuda.driver", "tensorrt")
        }
    tables = []
    for name in sys.argv[1:]:
        module = importlib.import_module(name)
        like = doubles["pycuda.driver" if name.startswith("pycuda") else "tensorrt"]
        rows = [
            f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in real_table(module, list(like)).items()
        ]
        tables.append(f" {json.dumps(f'{name} {_version(name)}')}: {{\n" + ",\n".join(rows) + "\n }")
    print("{\n" + ",\n".join(tables) + "\n}")


def _version(name: str) -> str:
    package = importlib.import_module(name.partition(".")[0])
    return str(getattr(package, "__version__", None) or package.VERSION_TEXT)


if __name__ == "__main__":
    main()
