"""What a check gives: findings. What may crash when it is loaded is asked by probes.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue

from engine.errors import TumorscanError
from engine.text import shown

Status = Literal["ok", "warn", "missing", "fail"]
Group = Literal["GPU", "runtimes", "machine", "models"]
Facts = dict[str, JsonValue]


def _one_line(text: str) -> str:
    return " ".join(shown(text).split())


Line = Annotated[str, AfterValidator(_one_line)]


class Finding(BaseModel):
    """One thing that was looked at.

    `name` is a stable word for programs; "missing" is what is not there and need not be, "fail" what is there
    and broken. `facts` are the figures behind `value`: bytes, versions, counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: Group
    name: str
    status: Status
    value: Line
    advice: Line = ""
    facts: Facts = {}


def guarded(group: Group, name: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What `look` finds; any exception is a finding itself."""
    try:
        return list(look())
    except TumorscanError as error:
        return [Finding(group=group, name=name, status="fail", value=str(error))]
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        said = ": ".join([type(error).__name__, *lines[:1]])
        return [Finding(group=group, name=name, status="fail", value=said)]


def gib(size: int) -> str:
    """Bytes as people say them."""
    return f"{size / 2**30:.1f} GiB"
