"""What `tumorscan` is: hangs the commands on it, and tells how one ended; no work of its own."""

from __future__ import annotations

import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from engine import __version__
from engine.commands import bench, build, doctor, engines, merge, parity, report, score
from engine.commands.examples import add_examples
from engine.commands.screen import complaint, lasting, speak_json
from engine.errors import TumorscanError
from engine.own_process import tune

BUG_STATUS = 1

app = typer.Typer(
    name="tumorscan",
    help="Bulk scoring of brain-MRI slices: which show a tumour, where, and how fast.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def run(command: typer.Typer, asked: Sequence[int] = ()) -> NoReturn:
    """Run `command` and exit with its status; at once, where signals have `asked` for that by now."""
    tune()
    if re.search(r"(^|\0)--log-format[=\0]json(\0|$)", "\0".join(sys.argv)):
        speak_json()  # from the first word that is wrong on
    if asked:
        _fail("interrupted", 128 + asked[0])
    try:
        status = command(standalone_mode=False)
    except TumorscanError as error:
        _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if not hasattr(error, "format_message"):
            _fail_with_log(error)
        elif said := error.format_message():  # typer's own: an unknown option, a missing argument
            _fail(f"{said} (see tumorscan --help)", 2)
        sys.exit(2)  # no command at all: typer has printed the help
    sys.exit(status if isinstance(status, int) else 0)


def whole_app() -> typer.Typer:
    """The app with every command on it, and examples at the end of their help."""
    import trainer.cli

    if not app.registered_commands:
        for command in (score, merge, report, bench, doctor, build, engines, parity):
            command.register(app)
        trainer.cli.register(app)
        add_examples(app)
    return app


@app.callback(invoke_without_command=True)
def top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Bulk scoring of brain-MRI slices: which show a tumour, where, and how fast."""
    if version:
        typer.echo(f"tumorscan {__version__}")
        raise typer.Exit


def _fail(text: str, status: int) -> NoReturn:
    typer.echo(complaint(text, status), file=lasting(sys.stderr), nl=False)
    sys.exit(status)


def _fail_with_log(error: Exception) -> NoReturn:
    """Our own bug: the traceback goes to a file, one line to the screen."""
    what = f"a fault of tumorscan itself ({type(error).__name__}: {error})"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="tumorscan-", suffix=".log", delete=False, errors="backslashreplace"
        ) as file:
            file.write(f"tumorscan {__version__}\n{' '.join(sys.argv)}\n\n")
            traceback.print_exception(error, file=file)
    except OSError as full:
        traceback.print_exception(error)
        _fail(f"{what}; it could not be written to a log file ({full.strerror})", BUG_STATUS)
    _fail(f"{what}; the details are in {file.name}", BUG_STATUS)
