"""What doubles in processes of their own are told: double.json in a bundle, or in the folder of FOLDER.

{"schedule", "memory" in bytes, "fail": [[name, at, error], ...]}; "gpus": {"1": the same for GPU 1 alone}.
For tests.preparechild: "plans_of": a bundle whose graphs plans are made of instead, "patience": seconds that
a build takes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FOLDER = "TUMORSCAN_TEST_DOUBLE"
"""The environment variable that names the folder."""


def settings_of(beside: Path | None = None, gpu: int = 0) -> tuple[Path, dict[str, Any]]:
    """The folder, which is `beside` where none is named, and the settings for a GPU."""
    folder = Path(os.environ[FOLDER]) if FOLDER in os.environ else beside
    assert folder is not None
    path = folder / "double.json"
    settings: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return folder, settings.get("gpus", {}).get(str(gpu), settings)
