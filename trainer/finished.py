"""Two finished run folders, as the exporter needs them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from engine.bundle import Model
from engine.errors import UsageError
from trainer.dataset import Split
from trainer.fit import build_model


@dataclass(frozen=True, slots=True)
class Runs:
    """What two run folders say of themselves."""

    folders: dict[Model, Path]
    split: Split
    configs: dict[Model, dict[str, Any]]
    epochs: dict[Model, int]

    @classmethod
    def open(cls, classifier: Path, segmenter: Path) -> Runs:
        """Read both; UsageError when one is no finished run of its kind or their splits differ."""
        folders: dict[Model, Path] = {"classifier": classifier, "segmenter": segmenter}
        configs, splits, epochs = {}, {}, {}
        for kind, run in folders.items():
            for name in ("config.json", "split.json", "best.weights.h5"):
                if not (run / name).is_file():
                    raise UsageError(f"{run} is not a run of `tumorscan train {kind}`: it has no {name}")
            configs[kind] = json.loads((run / "config.json").read_text())
            if configs[kind]["kind"] != kind:
                raise UsageError(f"{run} holds a {configs[kind]['kind']}, not a {kind}")
            if not (run / "metrics.json").is_file():
                raise UsageError(f"{run} is not finished: run its `tumorscan train` command again to the end")
            epochs[kind] = json.loads((run / "metrics.json").read_text())["epochs"]
            splits[kind] = Split.load(run / "split.json")
        if splits["classifier"] != splits["segmenter"]:
            raise UsageError(
                f"{classifier} and {segmenter} were trained on different splits: train one with the other's "
                "split.json (--split), or the test patients of one are the training patients of the other"
            )
        return cls(folders, splits["classifier"], configs, epochs)

    @property
    def are_the_articles(self) -> bool:
        """Whether both follow the article's recipe, which names its operating point too."""
        return all(config["preset"]["name"] == "article" for config in self.configs.values())

    def model(self, kind: Model) -> keras.Model:
        """The trained network, its best weights in it."""
        weights = "none" if self.configs[kind]["weights"] == "none" else "file"
        model = build_model(kind, weights=weights)
        model.load_weights(self.folders[kind] / "best.weights.h5")
        return model
