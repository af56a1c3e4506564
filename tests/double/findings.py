"""What the double has against a program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "race",
    "address",  # outside every allocation, freed, or memory that is not pagelocked
    "refusal",  # what CUDA or TensorRT takes silently or answers with a crash, and the lanes must not do
    "context",
    "leak",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, whatever the results look like."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


class DoubleError(AssertionError):
    """The program broke a rule of the device; `findings` says which."""

    def __init__(self, findings: list[Finding]) -> None:
        shown = "\n".join(f"  {finding}" for finding in findings[:20])
        more = f"\n  and {len(findings) - 20} more" if len(findings) > 20 else ""
        super().__init__(f"{len(findings)} findings\n{shown}{more}")
        self.findings = findings


@dataclass(slots=True)
class Findings:
    """All that was found, each once."""

    found: dict[Finding, None] = field(default_factory=dict)

    def add(self, kind: Kind, text: str) -> None:
        """Note one; the same one again changes nothing."""
        self.found[Finding(kind, text)] = None

    def of(self, kind: Kind) -> list[Finding]:
        """Those of one kind."""
        return [finding for finding in self.found if finding.kind == kind]
