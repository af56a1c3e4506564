"""Dockerfile.gpu and docs/gpu.md name what is there: files, packages, commands, options, errors."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import typer

import trainer.cli
from engine.commands import build, doctor, engines, parity, score
from tests.tools import tool

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile.gpu").read_text().replace("\\\n", " ")
GUIDE = (ROOT / "docs" / "gpu.md").read_text()
RAISERS = {"MachineError", "UsageError", "NoGpuError"}


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)


# Dockerfile.gpu


def copied() -> set[str]:
    """What is copied out of the checkout; a stage copies from another one, too."""
    lines = [line.split() for line in instructions("COPY")]
    return {source for words in lines if not words[0].startswith("--from=") for source in words[:-1]}


def test_what_is_copied_is_there_and_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert copied() == {line[1:] for line in lines if line.startswith("!")}
    assert [source for source in copied() if not (ROOT / source).exists()] == []


def test_what_is_copied_between_stages_is_copied_from_one_that_there_is() -> None:
    stages = re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE)
    sources = [line.split()[0].removeprefix("--from=") for line in instructions("COPY") if "--from=" in line]
    assert sources
    assert set(sources) <= set(stages)


def test_both_stages_stand_on_the_same_image_and_the_compiler_stays_in_the_first() -> None:
    first, last = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert first == last
    assert "g++" not in DOCKERFILE.rpartition("\nFROM ")[2]


def test_the_image_keeps_the_entry_point_it_stands_on_and_says_what_it_is() -> None:
    assert instructions("ENTRYPOINT") == []
    labels = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", DOCKERFILE))
    assert {"title", "description", "licenses", "base.name"} <= labels


def test_the_wheel_can_be_built_of_what_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        project["project"]["readme"],
        *project["project"]["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
        "pyproject.toml",
    }
    assert needed == {source for source in copied() if not source.startswith("jobs/")}


def test_the_packages_installed_first_are_those_that_tumorscan_asks_for() -> None:
    (run,) = [line for line in instructions("RUN") if "requirements.txt" in line]
    words = shlex.split(run.partition(" > requirements.txt")[0])
    assert words[0] == "python"
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert done.stdout.split("\n")[:-1] == [
        *project["dependencies"],
        *(each for extra in ("gpu", "medical", "cloud") for each in project["optional-dependencies"][extra]),
    ]


def test_a_linter_finds_nothing() -> None:
    done = subprocess.run([tool("hadolint"), str(ROOT / "Dockerfile.gpu")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_container_runs_as_a_number_that_is_not_root() -> None:
    assert [user for user in instructions("USER") if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)] == []
    assert instructions("USER")


def test_the_plan_cache_is_a_folder_below_the_volume() -> None:
    (volume,) = instructions("VOLUME")
    (cache,) = re.findall(r"TUMORSCAN_PLAN_CACHE=(\S+)", DOCKERFILE)
    assert PurePosixPath(volume) in PurePosixPath(cache).parents


# docs/gpu.md


def commands() -> list[str]:
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL))
    inline = "\n".join(re.findall(r"`(tumorscan [^`\n]+)`", GUIDE))
    names = "build|doctor|engines|evaluate|export|parity|phantoms|score|train"
    found = re.findall(rf"\btumorscan ((?:{names})\b[^&|'\n]*)", f"{blocks}\n{inline}")
    return sorted({line.strip() for line in found})


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_guide_are_understood(line: str) -> None:
    app = typer.Typer()
    for command in (score, doctor, build, engines, parity):
        command.register(app)
    trainer.cli.register(app)
    parsed: Any = typer.main.get_command(app)
    words = shlex.split(line)
    while hasattr(parsed, "commands"):
        parsed = parsed.commands[words.pop(0)]
    if "--help" not in words:
        parsed.make_context(parsed.name, words)


def test_every_command_for_gpus_is_shown() -> None:
    assert {"build", "doctor", "engines", "parity"} <= {line.split()[0] for line in commands()}


def documented() -> list[str]:
    """The errors of the table, variable parts as …, without the GPU that a failure is said of."""
    table = GUIDE.partition("## What errors mean")[2]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    errors = [error for cell in cells for error in re.findall(r"`([^`]+)`", cell)]
    return [error.removeprefix("GPU …: ") for error in errors]


def templates(path: Path, *, raised: bool) -> Iterator[str]:
    """The strings of a file with … for what is filled in; of those `raised`, what errors say."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not raised:
            yield from template(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISERS:
            for text in node.args:
                yield from template(text)


def template(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
        yield "".join(map(str, parts))


def is_of(error: str, template: str) -> bool:
    """Whether the `error` of the guide shows this template, from its beginning."""
    return re.match(".*".join(re.escape(part) for part in error.split("…")), template) is not None


def test_errors_of_the_guide_are_ones_that_exist() -> None:
    said = [text for path in ROOT.glob("engine/**/*.py") for text in templates(path, raised=False)]
    assert [error for error in documented() if not any(is_of(error, text) for text in said)] == []


@pytest.mark.parametrize(
    "path",
    [ROOT / "engine" / "driver.py", *sorted((ROOT / "engine" / "plans").glob("*.py"))],
    ids=lambda path: path.stem,
)
def test_every_error_of_driver_and_plans_is_in_the_guide(path: Path) -> None:
    errors = documented()
    missing = [
        said for said in templates(path, raised=True) if not any(is_of(error, said) for error in errors)
    ]
    assert missing == []
