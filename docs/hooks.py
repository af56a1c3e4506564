"""What mkdocs does not do by itself: pages made of the code, and links that leave docs/."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from typer.cli import get_docs_for_click

from engine.app import whole_app

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[([^]]+)\]\(([^):#]+)(#[^)]*)?\)")

COMMANDS_PAGE = """# Commands

Made of the code: the same as `tumorscan COMMAND --help`. Exit statuses are the same for all commands
([errors](../errors.md#what-ends-a-run)).

"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file in docs/ holds."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "reference/cli.md", content=COMMANDS_PAGE + command_reference()))
    card = (ROOT / "models" / "lgg" / "MODEL_CARD.md").read_text()
    files.append(File.generated(config, "model-card.md", content=card))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Name the files that a page links to outside of docs/: the site does not hold them."""
    folder = posixpath.dirname(page.file.src_uri)

    def named(match: re.Match[str]) -> str:
        text, target, _ = match.groups()
        place = posixpath.normpath(posixpath.join("docs", folder, target))
        if place.startswith("docs/") or target.startswith("/"):
            return match.group()
        return f"{text} (`{place}`)"

    return LINK.sub(named, markdown)


def command_reference() -> str:
    """Every command with its arguments and options, as Markdown."""
    group = typer.main.get_group(whole_app())
    context = typer.Context(group, info_name="tumorscan")
    return "\n".join(
        get_docs_for_click(obj=command, ctx=context, indent=1, call_prefix="tumorscan")
        for command in group.commands.values()
    )
