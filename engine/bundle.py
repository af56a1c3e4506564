"""The model bundle: a folder with both trained models and what is known of them.

`bundle.json` names every other file with its size and sha256. Loading checks the format version, then the
names, then sizes and hashes, and only then may anybody parse a graph.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    ValidationError,
    model_validator,
)

from engine.errors import UsageError

FORMAT_VERSION: Final = 1
MANIFEST = "bundle.json"

Model = Literal["classifier", "segmenter"]

_ANOTHER = "copy the bundle again or choose another with --bundle"


def _plain_name(name: str) -> str:
    if not name or name in (".", "..", MANIFEST) or any(c in "/\\" or ord(c) < 32 for c in name):
        raise ValueError(f"{name!r} is not a plain file name inside the bundle")
    return name


FileName = Annotated[str, AfterValidator(_plain_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Frozen):
    """One file of the bundle; `size` in bytes."""

    file: FileName
    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


class Normalisation(_Frozen):
    """The arithmetic each graph does to its uint8 input, by name."""

    classifier: Literal["imagenet_bgr", "unit"]
    segmenter: Literal["slice_standardised"] = "slice_standardised"


class Operating(_Frozen):
    """Where the cascade works: `min_pixels` is judged at 256x256, `chosen` says how the values were found."""

    gate_threshold: Probability
    mask_threshold: Annotated[float, Field(gt=0, le=1)]
    min_pixels: Annotated[int, Field(ge=1)]
    chosen: str


class Training(BaseModel):
    """What the models were trained on and how. Further keys are free."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    data: str
    presets: dict[Model, str]
    split_file: FileName | None = None
    split_sha256: Sha256 | None = None


class Metric(_Frozen):
    """One measured value, with its confidence interval and the number of cases behind it where known."""

    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    unit: str = ""
    n: int | None = None


class Manifest(_Frozen):
    """Everything in bundle.json. `models` holds each model's graphs by precision, fp32 always among them."""

    format_version: Literal[1] = FORMAT_VERSION
    name: str
    date: str
    models: dict[Model, dict[str, FileEntry]]
    files: tuple[FileEntry, ...] = ()
    input_size: Literal[256] = 256
    normalisation: Normalisation
    operating: Operating
    training: Training
    metrics: dict[str, Metric] = {}
    parity: dict[str, dict[str, JsonValue]] = {}
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for model in ("classifier", "segmenter"):
            if "fp32" not in self.models.get(model, {}):
                raise ValueError(f"the {model} has no fp32 graph")
        names = [entry.file for entry in self.entries()]
        if len(set(names)) != len(names):
            raise ValueError("a file is listed twice")
        split = next((e for e in self.files if e.file == self.training.split_file), None)
        if self.training.split_file and (split is None or split.sha256 != self.training.split_sha256):
            raise ValueError("training.split_file is not among the files with training.split_sha256")
        return self

    def entries(self) -> list[FileEntry]:
        """Every file of the bundle: graphs first, in order, then the others."""
        return [entry for graphs in self.models.values() for entry in graphs.values()] + list(self.files)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every file was seen to be what its manifest says.

    `sha256` is of the manifest's bytes. As these hold the hash of every other file, it stands for the whole
    bundle in a run's identity.
    """

    folder: Path
    manifest: Manifest
    sha256: str

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read and verify the bundle in `folder`; `UsageError` names the file that is not as it should be."""
        raw = _read(folder / MANIFEST)
        manifest = _parse(folder / MANIFEST, raw)
        for entry in manifest.entries():
            _verify(folder / entry.file, entry)
        return cls(folder, manifest, hashlib.sha256(raw).hexdigest())

    def expect_unchanged(self) -> None:
        """Raise `UsageError` where the folder no longer holds this bundle, whole.

        Asked after the graphs were read again by a runtime: what it read is then what was verified.
        """
        if Bundle.load(self.folder).sha256 != self.sha256:
            raise UsageError(f"{self.folder}: the bundle was replaced while it was loaded: run again")

    @staticmethod
    def default_folder() -> Path:
        """The bundle that came with the package: inside it in a wheel, models/lgg in a source checkout."""
        package = Path(__file__).parent
        places = (package / "models" / "lgg", package.parent / "models" / "lgg")
        for place in places:
            if (place / MANIFEST).is_file():
                return place
        raise UsageError(
            f"no model bundle came with this installation ({places[1]}): name one with --bundle DIR"
        )

    @property
    def gate_threshold(self) -> float:
        """The tumour probability from which a slice passes to the segmenter."""
        return self.manifest.operating.gate_threshold

    @property
    def mask_threshold(self) -> float:
        """The probability from which a pixel is tumour in the graph's own `mask`."""
        return self.manifest.operating.mask_threshold

    @property
    def min_pixels(self) -> int:
        """The fewest mask pixels at 256x256 that count as a mask."""
        return self.manifest.operating.min_pixels

    def graph(self, model: Model, precision: str = "fp32") -> Path:
        """The file of one model's graph; `UsageError` when the bundle has none in that precision."""
        entry = self.manifest.models[model].get(precision)
        if entry is None:
            has = ", ".join(self.manifest.models[model])
            raise UsageError(f"{self.folder} has no {precision} graph of the {model}: choose from {has}")
        return self.folder / entry.file


def write_manifest(
    folder: Path,
    *,
    name: str,
    date: str,
    graphs: Mapping[Model, Mapping[str, str]],
    files: Iterable[str],
    normalisation: Normalisation,
    operating: Operating,
    training: Training,
    metrics: Mapping[str, Metric],
    versions: Mapping[str, str],
) -> Bundle:
    """Make a bundle of the files in `folder`: measure and hash them, write bundle.json, load it again.

    `graphs` maps model and precision to a file name, `files` are the names of all others. The manifest
    appears whole or not at all. Raises `pydantic.ValidationError` for values no bundle may have.
    """
    manifest = Manifest(
        name=name,
        date=date,
        models={m: {p: _describe(folder, f) for p, f in by.items()} for m, by in graphs.items()},
        files=tuple(_describe(folder, f) for f in files),
        normalisation=normalisation,
        operating=operating,
        training=training,
        metrics=dict(metrics),
        versions=dict(versions),
    )
    return _save(folder, manifest)


def record_parity(bundle: Bundle, key: str, record: Mapping[str, JsonValue]) -> Bundle:
    """Write a parity report under `key`, such as "openvino:bf16", into bundle.json and load it again."""
    parity = {**bundle.manifest.parity, key: dict(record)}
    return _save(bundle.folder, bundle.manifest.model_copy(update={"parity": parity}))


def with_graph(bundle: Bundle, model: Model, precision: str, made: bytes) -> Bundle:
    """Put a graph into the bundle's folder as MODEL_PRECISION.onnx, name it in bundle.json, load that again.

    Parity that was recorded with a graph which this one replaces is forgotten.
    """
    bare = without_graph(bundle, model, precision)
    name = f"{model}_{precision}.onnx"
    _write_whole(bundle.folder / name, made)
    models = dict(bare.manifest.models)
    models[model] = {**models[model], precision: _describe(bundle.folder, name)}
    return _save(bundle.folder, bare.manifest.model_copy(update={"models": models}))


def without_graph(bundle: Bundle, model: Model, precision: str) -> Bundle:
    """Take a graph, and the parity of all that used it, out of the bundle; one without it comes back."""
    entry = bundle.manifest.models[model].get(precision)
    if entry is None:
        return bundle
    models = dict(bundle.manifest.models)
    models[model] = {name: graph for name, graph in models[model].items() if name != precision}
    parity = {
        key: record
        for key, record in bundle.manifest.parity.items()
        if precision not in key.partition(":")[2].split("+")
    }
    bare = _save(bundle.folder, bundle.manifest.model_copy(update={"models": models, "parity": parity}))
    (bundle.folder / entry.file).unlink()
    return bare


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{path.parent} is not a model bundle: it has no {MANIFEST}; choose one with --bundle DIR"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; {_ANOTHER}") from error


def _parse(path: Path, raw: bytes) -> Manifest:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged (not JSON: {error}): {_ANOTHER}") from None
    found = fields.get("format_version") if isinstance(fields, dict) else None
    if type(found) is not int or found != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format version {found!r}, this tumorscan reads {FORMAT_VERSION}: "
            "choose another bundle with --bundle or install the tumorscan that made it"
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{path} is damaged ({where + ': ' if where else ''}{what}): {_ANOTHER}") from None


def _verify(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise UsageError(f"{path} is missing, {MANIFEST} lists it: {_ANOTHER}")
    size = path.stat().st_size
    if size != entry.size:
        raise UsageError(f"{path} has {size} bytes, {MANIFEST} says {entry.size}: {_ANOTHER}")
    try:
        found = _sha256(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; {_ANOTHER}") from error
    if found != entry.sha256:
        raise UsageError(f"{path} has sha256 {found}, {MANIFEST} says {entry.sha256}: {_ANOTHER}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(folder: Path, name: str) -> FileEntry:
    path = folder / _plain_name(name)
    return FileEntry(file=name, sha256=_sha256(path), size=path.stat().st_size)


def _save(folder: Path, manifest: Manifest) -> Bundle:
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    _write_whole(folder / MANIFEST, text.encode())
    return Bundle.load(folder)


def _write_whole(path: Path, data: bytes) -> None:
    """The file appears with all of `data` in it, or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
