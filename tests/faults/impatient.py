"""The command, with two seconds a file instead of sixty and a line a second: a hanging decoder costs less."""

from __future__ import annotations

from types import ModuleType

from engine import cli


def load() -> ModuleType:
    import engine.opening
    import engine.watch.display
    from engine import app

    engine.opening.FILE_TIMEOUT = 2.0
    engine.watch.display.LINE_SECONDS = 1.0
    return app


if __name__ == "__main__":
    cli.load = load
    cli.main()
