"""The command, with two seconds a file instead of sixty and a line a second: a hanging decoder costs less."""

from __future__ import annotations

import engine.opening
import engine.watch.display
from engine.cli import main

engine.opening.FILE_TIMEOUT = 2.0
engine.watch.display.LINE_SECONDS = 1.0

if __name__ == "__main__":
    main()
