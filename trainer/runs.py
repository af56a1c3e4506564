"""A run folder: the training it was asked for, whether that has begun, and how far it came."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras

from engine.errors import UsageError
from trainer.callbacks import next_epoch, read_history, rewrite_history
from trainer.dataset import Split
from trainer.presets import Kind, Preset

_PRESET_OPTIONS = {
    "slices": "--slices",
    "epochs": "--epochs",
    "batch_size": "--batch",
    "momentum": "--momentum",
    "learning_rate": "--learning-rate",
    "split": "--by",
    "loss": "--loss",
    "freeze": "--freeze",
    "augmentation": "--augmentation",
}


@dataclass(frozen=True, slots=True)
class Request:
    """One training, as asked for.

    Args:
        kind: which model.
        data: a tree of patients' folders.
        run: the run folder; one that holds an unfinished run of the same request is resumed.
        preset: the recipe.
        extra: further trees whose patients are all trained on (phantoms, say).
        weights: "none", "imagenet" (downloaded by Keras), or an .npz file filled in by layer name.
        split: a split file to use instead of a new one.
        folds, fold: test on this fold of so many, counted from 1; 0 and 0 split by the preset's fractions.
        limit: at most so many slices of each part, spread over it; 0 takes all.
        seed: of split, order, augmentation and initial weights.
        precision: "float32", "mixed_bfloat16", or "auto": the latter where the CPU computes in it.
        cache: bytes of memory for decoded slices; it and `workers` change no result and are not recorded.
        workers: threads that make batches ahead.
    """

    kind: Kind
    data: Path
    run: Path
    preset: Preset
    extra: tuple[Path, ...] = ()
    weights: str = "none"
    split: Path | None = None
    folds: int = 0
    fold: int = 0
    limit: int = 0
    seed: int = 0
    precision: str = "auto"
    cache: int = 0
    workers: int = 1


def config_of(request: Request, precision: str) -> dict[str, Any]:
    """What config.json holds of a request; `precision` is the policy that it is trained in."""
    return {
        "kind": request.kind,
        "data": str(request.data),
        "extra": [str(path) for path in request.extra],
        "weights": request.weights,
        "split": None if request.split is None else str(request.split),
        "folds": request.folds,
        "fold": request.fold,
        "limit": request.limit,
        "seed": request.seed,
        "precision": precision,
        "preset": json.loads(json.dumps(asdict(request.preset))),
    }


def is_begun(run: Path, config: dict[str, Any]) -> bool:
    """Whether the folder holds this training; UsageError when it holds another."""
    path = run / "config.json"
    if not path.exists():
        return False
    different = _differing_options(json.loads(path.read_text()), config)
    if different:
        raise UsageError(
            f"{run} holds a training with another {', '.join(different)}; "
            "ask for the same to resume it, or give another --run"
        )
    return True


def _differing_options(stored: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """What a user would have to change for `asked` to be `stored`, as typed on the command line."""
    different = {name for name in asked if name != "preset" and stored.get(name) != asked[name]}
    options = {name if name in ("kind", "data") else f"--{name}" for name in different}
    recipe = {name for name, value in asked["preset"].items() if stored["preset"].get(name) != value}
    if "name" in recipe:
        recipe = {"name"}
    return sorted(options | {_PRESET_OPTIONS.get(name, f"--set {name}") for name in recipe})


def begin(run: Path, config: dict[str, Any], split: Split) -> None:
    """Write split and config; the config comes last and whole, as it says that the training has begun."""
    run.mkdir(parents=True, exist_ok=True)
    split.save(run / "split.json")
    versions = {"version": keras.__version__, "backend": keras.backend.backend()}
    partial = run / ".config.json.partial"
    partial.write_text(json.dumps({**config, "keras": versions}, indent=1) + "\n")
    partial.replace(run / "config.json")


def past_epochs(run: Path) -> tuple[int, list[dict[str, float]]]:
    """The epoch that comes next, and the rows of those before; history.csv is cut to them."""
    first = next_epoch(run / "backup")
    past = read_history(run / "history.csv", before=first)
    rewrite_history(run / "history.csv", past)
    return first, past
