"""Where a Ray cluster is: what --ray takes."""

from __future__ import annotations

import re
from typing import Final

from engine.errors import UsageError

AUTO: Final = "auto"
LOCAL: Final = "local"
HOST_PORT: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[^\s/:\[\]]+):(?P<port>\d{1,5})")
_CLIENT: Final = "ray://"


def is_address(word: str) -> bool:
    """Whether `word` was meant as one, and is no INPUT."""
    return word in (AUTO, LOCAL) or word.startswith(_CLIENT) or HOST_PORT.fullmatch(word) is not None


def refuse_address(address: str) -> None:
    """Raise UsageError for what is none, and for one that Ray Data cannot use."""
    if address.startswith(_CLIENT):
        raise UsageError(
            f"--ray {address}: Ray's client cannot run Ray Data: run the command on a node of the cluster "
            "(ray job submit does), with --ray alone"
        )
    if not is_address(address):
        raise UsageError(f"--ray {address}: give HOST:PORT of a cluster's head, auto or local")
