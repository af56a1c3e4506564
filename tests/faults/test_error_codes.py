"""docs/errors.md names every stage and code that the engine can quarantine a slice with, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
STAGES = {"discover", "read", "decode", "write"}
_ROW = re.compile(r"^\| `(\w+)` \|(.*?)\|", re.MULTILINE)


def engine_calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the engine's sources, by the name of what is called."""
    for path in sorted((CHECKOUT / "engine").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = (
                    node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                )
                yield name, node


def text_of(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def engine_codes() -> set[str]:
    """The codes of `Failure(stage, code, ...)`, of `refused(code, ...)`, and those of the system's errors."""
    from engine.sources import files

    codes = {*files._CODES.values(), "io"}
    for name, call in engine_calls():
        if name == "Failure" and len(call.args) > 1:
            codes.add(text_of(call.args[1]) or "")
        elif name == "refused" and call.args:
            codes.add(text_of(call.args[0]) or "")
    return codes - {""}


def documented(heading: str) -> dict[str, str]:
    """The first two columns of the table below a heading."""
    text = (CHECKOUT / "docs" / "errors.md").read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return {code: rest.strip() for code, rest in _ROW.findall(section)}


def test_every_code_of_the_engine_is_documented_and_every_documented_one_exists() -> None:
    assert set(documented("Codes")) == engine_codes()


def test_the_stages_are_these_four() -> None:
    assert set(documented("Stages")) == STAGES
    named = {text_of(call.args[0]) for name, call in engine_calls() if name in ("Failure", "io_failure")}
    assert named - {None} <= STAGES
    for code, stages in documented("Codes").items():
        assert set(re.findall(r"`(\w+)`", stages)) <= STAGES, code
