"""What is known of a plan: `plan.json`, which lies beside it in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from engine.bundle import Model, Sha256
from engine.errors import UsageError
from engine.plans.trust import delete
from engine.text import shown

FORMAT_VERSION: Final = 1

Flavour = Literal["tensorrt", "tensorrt-rtx"]
Status = Literal["unproven", "proven", "weakly proven", "failed"]

Capability = Annotated[str, Field(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$")]
Count = Annotated[int, Field(ge=0)]

TITLES: Final[Mapping[Flavour, str]] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class PlanKey:
    """Everything that makes two plans different; fields as in PlanRecord."""

    model: Model
    onnx_sha256: str
    precision: str
    batch: int
    flavour: Flavour
    tensorrt_version: str
    cuda: str | None
    driver: str | None
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    workspace: int | None
    level: int | None
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, record: PlanRecord) -> PlanKey:
        """The key that the plan of `record` is cached by."""
        return cls(**{field.name: getattr(record, field.name) for field in fields(cls)})

    @property
    def digest(self) -> str:
        """sha256 over all fields and the record's format, so plans of two formats never meet."""
        return _digest([FORMAT_VERSION, asdict(self)])

    @property
    def name(self) -> str:
        """The folder of the plan in the cache."""
        return f"{self.model}-{self.digest[:16]}"

    @property
    def timing_name(self) -> str:
        """The file of the timing cache, which all plans of one builder on one GPU share."""
        device = [self.flavour, self.tensorrt_version, self.cuda, self.driver, self.gpu]
        return f"{_digest([*device, *self.compute_capabilities])[:16]}.timing"


class Proof(_Frozen):
    """What the parity gate said of a plan.

    `partner_sha256` is the plan of the other model that it was proven with, `slices` says in words which
    slices were scored, `report` is the parity report. A plan that is `unproven` has none of them.
    """

    status: Status = "unproven"
    partner_sha256: Sha256 | None = None
    slices: str = ""
    date: AwareDatetime | None = None
    report: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.status != "unproven" and (self.report is None or self.date is None):
            raise ValueError(f"a plan that is {self.status} has a report and a date")
        return self


class LayerRecord(_Frozen):
    """One layer of the built engine; `precision` is what it computes in, such as "FP16"."""

    name: str
    kind: str
    precision: str


class PlanRecord(_Frozen):
    """Everything in plan.json.

    `cuda` and `driver` are the driver's ("13.0", "580.65.06") and `gpu` the GPU that the plan was built on;
    None where it was built without one, as a portable plan is. `compute_capabilities` are those it runs on.
    `onnx_sha256` is of the bundle's float graph, `plan_size` and `workspace` are bytes, `level` is the
    builder's optimisation level; None stands for TensorRT's own choice. `layers_of` says whether `layers` are
    those of the built engine or, where it could not be loaded, of the network that was parsed.
    """

    format_version: Literal[1] = FORMAT_VERSION
    model: Model
    batch: Annotated[int, Field(ge=1)]
    precision: Literal["fp16"] = "fp16"
    flavour: Flavour
    tensorrt_version: Annotated[str, Field(min_length=1)]
    cuda: str | None
    driver: str | None
    gpu: str | None
    compute_capabilities: Annotated[tuple[Capability, ...], Field(min_length=1)]
    onnx_sha256: Sha256
    plan_sha256: Sha256
    plan_size: Count
    workspace: Count | None
    level: Count | None
    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    layers_of: Literal["engine", "network"]
    layers: tuple[LayerRecord, ...]
    built: AwareDatetime
    build_seconds: Annotated[float, Field(ge=0)]
    proof: Proof = Proof()

    @property
    def runtime(self) -> str:
        """What built the plan and what it runs on: "TensorRT 10.8.0 for NVIDIA H100 (9.0)"."""
        where = ", ".join(self.compute_capabilities)
        on = f"{self.gpu} ({where})" if self.gpu else f"compute capability {where}"
        return f"{TITLES[self.flavour]} {self.tensorrt_version} for {on}"

    @property
    def summary(self) -> str:
        """The plan in one line: model, precision, batch, runtime, proof, size, date."""
        return (
            f"{self.model} {self.precision}, batch {self.batch}, {self.runtime}, {self.proof.status}, "
            f"{self.plan_size / 1e6:.1f} MB, built {self.built:%Y-%m-%d}"
        )

    def to_json(self) -> bytes:
        """The record as plan.json holds it."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, allow_nan=False) + "\n").encode()


def parse_record(raw: bytes, path: Path) -> PlanRecord:
    """The record in `raw`, which was read from `path`; `UsageError` names the file when it is damaged."""
    again = delete(path.parent)
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shown(path)} is damaged (not JSON: {error}): {again}") from None
    found = fields.get("format_version") if isinstance(fields, dict) else None
    if type(found) is not int or found != FORMAT_VERSION:
        raise UsageError(
            f"{shown(path)} has format version {found!r}, this tumorscan reads {FORMAT_VERSION}: {again}"
        )
    try:
        return PlanRecord.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"{shown(path)} is damaged ({where + ': ' if where else ''}{what}): {again}"
        ) from None


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
