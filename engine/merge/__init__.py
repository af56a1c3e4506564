"""Shards put together: tables, masks and ledger of the run that was never divided.

Rows come from the shards' ledgers; masks are the shards' own files under a second name, or copies. Tables are
written when all that they speak of is there, and the ledger's word that it is done comes last. A merge that
was killed is begun anew by the same call, and finds its files there.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

from engine.cloud.addresses import as_typed, local, of_path
from engine.cloud.store import Stores
from engine.cloud.tree import Tree
from engine.disk import cannot_write
from engine.errors import UsageError
from engine.finish import Finish, finish
from engine.ledger import Ledger
from engine.ledger_readers import has_rows, stored_count, stored_identity, stored_meta
from engine.merge.copies import Copies, copies_in
from engine.merge.report import write_merge_report
from engine.merge.rows import Watch, take_rows, volume_rows
from engine.merge.shard_set import leader, read_shards
from engine.outputs.atomic import clean_stale
from engine.outputs.components import Rule
from engine.outputs.leftovers import FOLDERS, remove_outputs
from engine.outputs.parquet import expect_parquet
from engine.outputs.pseudonyms import Pseudonyms
from engine.outputs.runjson import RunReport
from engine.run import LEDGER, private_folder
from engine.shards import FinishedShard
from engine.text import shown

_MERGED: Final = "merged"
"""The ledger's note of what it is made of."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to merge; the command's options of the same names explain. `files` are masks and the like."""

    shards: tuple[Path, ...]
    out: Path
    files: bool = True
    parquet: bool = False
    anonymise: Path | None = None
    arguments: tuple[str, ...] = ()

    @property
    def private(self) -> Path:
        """Where the ledger lies."""
        return private_folder(self.out, self.anonymise)


@dataclass(frozen=True, slots=True)
class Merged:
    """What came of it; `report` is what run.json says. `nothing_new`: all was there already."""

    report: RunReport
    nothing_new: bool


def merge(options: Options, watch: Watch) -> Merged:
    """Verify the shards and put them together.

    Raises UsageError: shards that are none, missing, not finished, twice there or not of one run; an output
    that is a shard or another run's. MachineError: what cannot be read or written.
    """
    if of_path(options.out) is not None:
        raise UsageError(f"{as_typed(options.out)}: shards are merged into a folder: name one, then copy it")
    options = replace(options, out=local(options.out))
    with copies_in(options.out) as copies:
        return _merge(options, watch, copies)


def _merge(options: Options, watch: Watch, copies: Copies) -> Merged:
    shards = read_shards([copies.begin(each) for each in options.shards], options.anonymise)
    _refuse_out(options, [each for each in shards if each.folder not in copies])
    pseudonyms = _pseudonyms(options, shards)
    parquet = options.parquet or all((each.folder / "results.parquet").exists() for each in shards)
    if parquet:
        expect_parquet()
    made_of = {
        "shards": [each.fingerprint for each in shards],
        "rows": sum(each.slices for each in shards),
        "files": options.files,
        "parquet": parquet,
    }
    earlier = _earlier(options)
    if earlier == {**made_of, "done": True}:
        return Merged(_told(options), nothing_new=True)
    clock = time.monotonic()
    identity = leader(shards).identity
    folders = tuple(options.out / name for name in FOLDERS)
    with Ledger.open(options.private / LEDGER, identity, fresh=True, folders=folders) as ledger:
        ledger.set_meta(_MERGED, made_of)
        try:
            _tidy(options, made_of, earlier)
            take_rows(shards, ledger, options.out, copies, files=options.files, watch=watch)
        except OSError as error:
            raise cannot_write(options.out, error) from error
        finish(ledger, _finish(options, shards, identity, pseudonyms, parquet=parquet))
        report = write_merge_report(
            options.out,
            shards,
            ledger.counts(),
            ledger.below(cast("float", identity["threshold"])) if identity["gate"] else 0,
            time.monotonic() - clock,
            options.arguments,
            pseudonyms,
            copies.told,
        )
        ledger.set_meta("seconds", report.timings.seconds_total)
        ledger.set_meta("reported", astuple(ledger.counts()))
        ledger.set_meta(_MERGED, {**made_of, "done": True})
    return Merged(report, nothing_new=False)


def _refuse_out(options: Options, shards: Sequence[FinishedShard]) -> None:
    out = Path(os.path.realpath(options.out))
    for each in shards:
        folder = Path(os.path.realpath(each.folder))
        if out == folder:
            raise UsageError(f"--out {shown(options.out)} is shard {each.shard.text}: name another folder")
        if out.is_relative_to(folder) or folder.is_relative_to(out):
            where = "inside" if out.is_relative_to(folder) else "around"
            raise UsageError(
                f"--out {shown(options.out)} lies {where} shard {each.shard.text}, {shown(each.folder)}: "
                "name a folder beside the shards"
            )


def _pseudonyms(options: Options, shards: Sequence[FinishedShard]) -> Pseudonyms | None:
    if options.anonymise is None:
        return None
    found = Pseudonyms.open(options.anonymise)
    if found.fingerprint != shards[0].identity["anonymise"]:
        raise UsageError(f"--anonymise {options.anonymise} has another key than the shards were scored with")
    return found


def _earlier(options: Options) -> dict[str, Any] | None:
    """What an earlier merge into the same folder was made of, empty where that is not known, None of none.

    Raises UsageError where a run was scored there.
    """
    path = options.private / LEDGER
    if stored_identity(path) is None:
        return None
    earlier = cast("dict[str, Any] | None", stored_meta(path).get(_MERGED))
    if earlier is None:
        if has_rows(path):
            raise UsageError(f"--out {shown(options.out)} holds a run that was scored: name another folder")
        return {}
    if earlier.get("done") and stored_count(path) != earlier["rows"]:
        raise UsageError(f"--out {shown(options.out)} was scored on since it was merged: name another folder")
    whole = all((options.out / name).exists() for name in ("results.csv", "errors.csv", "run.json"))
    return earlier if whole else {**earlier, "done": False}


def _tidy(options: Options, made_of: Mapping[str, object], earlier: Mapping[str, object] | None) -> None:
    """Clear the output of what an earlier merge left, but for files that are wanted again. Raises OSError."""
    if earlier is None or all(earlier.get(key) == made_of[key] for key in ("shards", "files")):
        clean_stale(options.out)
    else:
        remove_outputs(options.out)


def _told(options: Options) -> RunReport:
    path = options.out / "run.json"
    try:
        return RunReport.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown(path)} is damaged: delete it and merge again") from error


def _finish(
    options: Options,
    shards: Sequence[FinishedShard],
    identity: Mapping[str, object],
    pseudonyms: Pseudonyms | None,
    *,
    parquet: bool,
) -> Finish:
    masks = cast('Literal["png", "rle", "none"]', identity["masks"])
    return Finish(
        options.out,
        masks=masks if options.files or masks == "rle" else "none",
        components=Rule.parse(str(identity["components"])),
        probabilities=bool(identity["probabilities"]),
        parquet=parquet,
        pseudonyms=pseudonyms,
        names=options.private / "names.csv",
        made=volume_rows(shards),
        start=Tree(Stores(), threading.Event()).start,
    )
