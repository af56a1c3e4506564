"""A bundle replaced beneath a run: no row is ever scored by other models than its run's."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.faults import shim
from tests.faults.kinds import Struck, kind
from tests.faults.kinds.rivals import WRONG_USE
from tests.faults.moments import wait_for_moment
from tests.faults.scene import FINISHED, Scene
from tests.tinybundle import make_tiny_bundle


@kind()
def bundle_replaced(scene: Scene, chance: random.Random) -> Struck:
    """By another whole one, or by a copy that is still under way, at any moment."""
    bundle = scene.own("bundle")
    run = scene.start()
    when = wait_for_moment(run, scene, chance)
    early, missed = not (scene.out / "run.sqlite").exists(), run.ended()
    how = _replace(bundle, chance)
    status = scene.expect(run, FINISHED, WRONG_USE, says="bundle")
    # A run that had come to nothing yet may become one of the other bundle, which this one cannot continue.
    settled = _rows(scene) and not early
    scene.expect(scene.start(), *((WRONG_USE,) if settled else (WRONG_USE, FINISHED)), says="bundle")
    _put_back(bundle)
    strange = scene.expect(scene.start("--dry-run"), 0, WRONG_USE) == WRONG_USE
    assert not strange or not settled, scene.runs[-1].said
    return Struck(f"the bundle was {how} {when}: {status}", ("--fresh",) if strange else (), missed=missed)


@kind(shim.why_not)
def bundle_replaced_at_loading(scene: Scene, chance: random.Random) -> Struck:
    """After a graph's hash was found right, and before the runtime reads that graph."""
    bundle = scene.own("bundle")
    graph = chance.choice(("classifier.onnx", "segmenter.onnx"))
    place = scene.folder / "meeting"
    run = scene.start(env=shim.calls("open", graph, do=f"meet {place}", mark=place, first=2))
    assert run.until(place.with_suffix(".here").exists), run.said
    how = _replace(bundle, chance)
    place.with_suffix(".go").touch()
    status = scene.expect(run, WRONG_USE, says="bundle")
    _put_back(bundle)
    return Struck(f"the bundle was {how} before {graph} was loaded: {status}")


def _rows(scene: Scene) -> bool:
    """Whether the run has decided anything yet."""
    path = scene.out / "run.sqlite"
    if not path.exists():
        return False
    with closing(sqlite3.connect(path)) as ledger:
        return bool(ledger.execute("SELECT count(*) FROM slices").fetchone()[0])


def _replace(bundle: Path, chance: random.Random) -> str:
    """Another bundle in its place, the old one kept beside it."""
    kept = bundle.with_name("kept")
    bundle.rename(kept)
    make_tiny_bundle(bundle, sharpness=0.2, min_pixels=900)
    if chance.random() < 0.5:
        return "replaced by another"
    graph = bundle / chance.choice(("classifier.onnx", "segmenter.onnx"))
    graph.write_bytes(graph.read_bytes()[: chance.choice((0, 500))])
    return f"replaced by one whose {graph.name} is cut short"


def _put_back(bundle: Path) -> None:
    bundle.rename(bundle.with_name("other"))
    bundle.with_name("kept").rename(bundle)
