"""README.md and docs/ name what is there: commands, options, files, imports."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from engine.app import whole_app
from engine.commands.examples import EXAMPLES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
APP: Any = typer.main.get_command(whole_app())
SHELLS = ("sh", "bash", "console", "ini")

# Options that pages name alone, of programs that are not ours, or that make them of names.
FOREIGN = {
    "docker": {"--entrypoint", "--user", "--build-arg", "--rm", "--gpus"},
    "slurm": {"--array", "--requeue", "--time"},
    "nnU-Net": {"--continue_prediction"},
    "mindGlide": {"--resume"},
    "mkdocs": {"--strict"},
    "benchmarks.peers": {"--python-keras", "--python-onnxruntime"},
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of these languages, indented ones too, with lines that go on joined."""
    fence = rf"^( *)```(?:{'|'.join(languages)})\n(.*?)^\1```$"
    found = re.findall(fence, page.read_text(), re.MULTILINE | re.DOTALL)
    return [body.replace("\\\n", " ") for _, body in found]


def outside_of_blocks(page: Path) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def calls(page: Path) -> Iterator[list[str]]:
    """The words after `tumorscan` of each command in the page's blocks."""
    for line in "\n".join(blocks(page, *SHELLS)).splitlines():
        for piece in re.split(r"&&|\|\||;| [|&#] | 2?> ?|^Description=.*", line):
            # The last one: before it an image may have the name.
            found = re.match(r"(?:.*[\s/'])?tumorscan ([a-z-].*)", f" {piece}")
            if found is not None:
                yield words_of(found[1])


def words_of(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # the end of sh -c '...'
        return shlex.split(text.strip().removesuffix("'"))


def inline(page: Path) -> list[str]:
    """Code in the text of the page."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", outside_of_blocks(page))


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and what is left of them. AssertionError for one that is not there."""
    command = APP
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


def all_options(command: Any = APP) -> set[str]:
    below = getattr(command, "commands", {}).values()
    return options(command).union(*(all_options(each) for each in below))


CALLS = sorted({(name_of(page), tuple(words)) for page in PAGES for words in calls(page)})


@pytest.mark.parametrize(
    ("page", "words"), CALLS, ids=[f"{page}: {' '.join(words)}" for page, words in CALLS]
)
def test_commands_are_understood(page: str, words: tuple[str, ...]) -> None:
    command, rest = resolve(list(words))
    if command is APP:
        assert set(rest) <= options(APP)
    elif "--help" not in rest:
        command.make_context(command.name, rest)


def lowest(command: Any = APP, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its name."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for each in below:
        yield from lowest(below[each], f"{name} {each}".strip())


@pytest.mark.parametrize("name", sorted(name for name, _ in lowest()))
def test_the_help_of_every_command_ends_with_examples_that_are_understood(name: str) -> None:
    command = dict(lowest())[name]
    assert command.epilog, "no example in engine/commands/examples.py"
    for line in EXAMPLES[name]:
        words = shlex.split(line.rpartition("| ")[2])
        assert words[: 1 + len(name.split())] == ["tumorscan", *name.split()]
        assert line in command.epilog
        found, rest = resolve(words[1:])
        found.make_context(name, rest)


@pytest.mark.parametrize("name", [name for name, _ in lowest()])
def test_the_help_of_every_command_names_its_exit_statuses(name: str) -> None:
    assert "Exit status: 0" in " ".join((dict(lowest())[name].help or "").split())


def test_there_is_no_example_of_a_command_that_there_is_not() -> None:
    assert set(EXAMPLES) <= {name for name, _ in lowest()}


def test_every_command_is_shown_somewhere() -> None:
    said = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in APP.commands if f"tumorscan {name}" not in said] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_exist_with_their_options(page: Path) -> None:
    for code in inline(page):
        found = re.match(r"(?:tumorscan )([a-z-].*)$", code)
        if found is None:
            continue
        command, rest = resolve(re.sub(r"\||\.\.\.|…", " ", found[1]).split())
        used = {word.partition("=")[0] for word in rest if word.startswith("-")}
        assert used <= options(command), code


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_that_stand_alone_in_the_text_exist(page: Path) -> None:
    known = all_options().union(*FOREIGN.values())
    programs = "\n".join(
        path.read_text()
        for folder in ("benchmarks", "tests/faults")
        for path in (ROOT / folder).rglob("*.py")
    )
    named = {found[0] for code in inline(page) if (found := re.match(r"--[a-z][\w-]+", code))}
    assert [option for option in named - known if f'"{option}"' not in programs] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_and_files_that_pages_run_are_there(page: Path) -> None:
    text = page.read_text()
    for module in re.findall(r"python -m ((?:benchmarks|tests|engine)[\w.]*)", text):
        assert importlib.util.find_spec(module) is not None, module
    for script in re.findall(r"(?<![\w/])(jobs/[\w./-]+\w)", text):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_pages_is_python_and_its_imports_are_there(page: Path) -> None:
    for body in blocks(page, "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in (
                "engine",
                "trainer",
            ):
                module = importlib.import_module(node.module or "")
                assert [each.name for each in node.names if not hasattr(module, each.name)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_of_the_repository_lead_somewhere(page: Path) -> None:
    made = {"reference/cli.md", "model-card.md"}
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", outside_of_blocks(page)):
        place = (page.parent / target).resolve()
        made_of_code = page.parents[0] != ROOT and any(str(place).endswith(f"docs/{each}") for each in made)
        assert place.exists() or made_of_code, target


# The site


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_command_with_every_option() -> None:
    text = hooks().command_reference()
    for name, command in APP.commands.items():
        assert f"## `tumorscan {name}`\n" in text
        for parameter in command.params:
            longest = max(parameter.opts, key=len)
            assert not longest.startswith("--") or parameter.hidden or longest in text


def test_links_that_leave_the_site_become_names() -> None:
    class Page:
        class file:  # noqa: N801
            src_uri = "howto/it.md"

    text = "[a](../../models/lgg/X.md), [b](../gpu.md), [c](https://x.org/y), ![d](../images/z.png)"
    assert hooks().on_page_markdown(text, Page()) == (
        "a (`models/lgg/X.md`), [b](../gpu.md), [c](https://x.org/y), ![d](../images/z.png)"
    )


def test_pages_of_the_navigation_are_there() -> None:
    class Loader(yaml.SafeLoader):
        pass

    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    found = re.findall(r"[\w/-]+\.md", str(settings["nav"]))
    made = {"reference/cli.md", "model-card.md"}
    assert [page for page in found if page not in made and not (ROOT / "docs" / page).exists()] == []


def test_the_picture_of_the_house_needs_no_network() -> None:
    picture = ROOT / "docs" / "images" / "house.svg"
    root = ElementTree.parse(picture).getroot()
    assert root.attrib["viewBox"]
    assert re.findall(r"(?:href|src|url)\s*[=(]\s*[\"']?http", picture.read_text()) == []


# Completion


@pytest.mark.parametrize(
    ("typed", "offered"), [("tumorscan sc", "score"), ("tumorscan score --max-r", "--max-runtime")]
)
def test_a_shell_is_told_how_words_go_on(tmp_path: Path, typed: str, offered: str) -> None:
    program = tmp_path / "tumorscan"
    program.write_text("from engine.cli import main; main()")
    done = subprocess.run(
        ["python", str(program)],
        cwd=tmp_path,
        env={
            "PATH": str(Path(sys.executable).parent),
            "PYTHONPATH": str(ROOT),
            "_TUMORSCAN_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(typed.count(" ")),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == [offered]
