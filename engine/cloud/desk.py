"""Where a run works whose output is an object store: a private folder of this machine.

Slices' files are written into the folder as into any output, uploaded with the transaction of their rows,
and deleted here. The ledger in the folder is a cache of the record in the store.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from engine.cloud.addresses import Address, local, of_path
from engine.cloud.faults import StoreError, told
from engine.cloud.lock import StoreLock
from engine.cloud.record import RECORD, Part, Record
from engine.cloud.scattered import Scattered
from engine.cloud.store import Store, Stores
from engine.cloud.stored import StoredLedger, bring_up_to_date, note_report
from engine.cloud.uploads import Uploads
from engine.disk import cannot_write
from engine.errors import UsageError
from engine.ledger import Ledger
from engine.ledger_readers import stored_rows
from engine.outputs.atomic import clean_stale, write_whole
from engine.outputs.leftovers import FOLDERS, TABLES, remove_outputs
from engine.outputs.runjson import RunReport
from engine.rows import name_of
from engine.run import LEDGER, Options
from engine.text import shown

_CLEARING: Final = "clearing"
_INTENT: Final = "intent.json"
"""What the next part will speak of: files that a kill may leave without it."""
_REPORT: Final = "run.json"
_DELETED_AT_ONCE: Final = 1000


def desk_folder(address: Address) -> Path:
    """The folder for this output, in the user's cache."""
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(caches).is_absolute():  # as the XDG specification has it
        caches = f"{Path.home()}/.cache"
    # Hidden, so that no walk over an input that it lies in takes it for slices.
    return Path(caches, "tumorscan", ".runs", hashlib.sha256(str(address).encode()).hexdigest()[:24])


@contextmanager
def at_desk(
    options: Options, says: Callable[[str], None], stop: threading.Event
) -> Iterator[tuple[Options, Desk | None]]:
    """`options` of a run that works on this machine, and its desk where the output is in an object store.

    Raises UsageError where another run writes there, or the record is damaged; MachineError where the store
    does not answer or denies; StoppedError once `stop` is set.
    """
    address = of_path(options.out)
    if address is None:
        yield replace(options, out=local(options.out)), None
        return
    if options.anonymise is not None:
        raise UsageError(
            f"--anonymise: the record of a run in {address} holds the names of its files: give an --out on a "
            "disk, then copy that"
        )
    folder = desk_folder(address)
    store = Stores().of(address)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        with StoreLock(store, address, f"{RECORD}/lock.json", says).take(stop) as lock:
            desk = Desk(store, address, folder, lock)
            desk.begin(fresh=options.fresh)
            yield replace(options, out=folder, store=str(address)), desk
    except UsageError as error:  # of the ledger, which knows its folder only
        raise UsageError(str(error).replace(str(folder), str(address))) from error
    except StoreError as error:
        raise told(address, error, writing=True) from error


@contextmanager
def at_copy(options: Options) -> Iterator[Options]:
    """`options` of a look at a run: those of an object store with a copy of its ledger, for this block."""
    address = of_path(options.out)
    if address is None:
        yield replace(options, out=local(options.out))
        return
    store = Stores().of(address)
    with tempfile.TemporaryDirectory(prefix="tumorscan-") as folder:
        record = Record(store, address / RECORD, writer="")
        bring_up_to_date(Path(folder, LEDGER), record)
        yield replace(options, out=Path(folder), store=str(address))


class Desk:
    """The folder, and the ways from it. The caller holds the lock and is alone."""

    def __init__(self, store: Store, address: Address, folder: Path, lock: StoreLock) -> None:
        self.address = address
        self.folder = folder
        self._store = store
        self._lock = lock
        self.record = Record(store, address / RECORD, lock.owner)
        self.uploads = Uploads(store, address, folder)
        self.scattered = Scattered(store, address)

    def begin(self, *, fresh: bool) -> None:
        """Have the folder say what the record does; clear away what a killed run left here and there."""
        if self._store.do(self._is_there(f"{RECORD}/{_CLEARING}")):
            self._clear()
        try:
            for name in (*FOLDERS, "volumes"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            clean_stale(self.folder)
            if fresh or not self.record.numbers:
                remove_outputs(self.folder)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        if not fresh:
            self._delete_unspoken()
            if bring_up_to_date(self.folder / LEDGER, self.record):
                self._recall_report()
            self.scattered.clear(lambda: stored_rows(self.folder / LEDGER))

    def open_ledger(self, identity: Mapping[str, object], *, continued: bool, fresh: bool) -> StoredLedger:
        """The run's ledger. `fresh` clears the output of an earlier run. Raises as `Ledger.open` does."""
        if fresh:
            self._clear()
        ledger = StoredLedger.open(self.folder / LEDGER, identity, fresh=not continued)
        return ledger.kept_at(self, identity)

    def append(self, part: Part) -> int:
        """Write a part, the files that its rows speak of first; its number. MachineError."""
        self._lock.expect()
        files = [*self.uploads.of(part.rows)]
        if files:
            names = [name for name, _ in files]
            intent = json.dumps({"part": self.record.next, "files": names}).encode()
            self._put(f"{RECORD}/{_INTENT}", intent)
            self.uploads.put(files)
        return self.record.append(part)

    def publish(self, ledger: Ledger, *, whole: bool) -> None:
        """Put the tables of this call there, what the run's end made of masks first, run.json last.

        The ledger goes with those of a `whole` run, for programs that read a copy of the output.
        """
        self._lock.expect()
        made = [
            (path.relative_to(self.folder), path)
            for name in (*FOLDERS, "volumes")
            for path in sorted((self.folder / name).rglob("*"))
            if path.is_file()
        ]
        self.uploads.put([(shown(name), path) for name, path in made])
        for _, path in made:
            path.unlink()
        self._delete(shown(name_of("masks", stem)) for stem in ledger.emptied())
        tables = [name for name in TABLES if name != _REPORT and (self.folder / name).exists()]
        self.uploads.put([(name, self.folder / name) for name in tables])
        for name in (LEDGER,) * whole + (_REPORT,):
            if (self.folder / name).exists():
                self.uploads.put([(name, self.folder / name)])

    def _recall_report(self) -> None:
        """Have the report here that another machine's call left: it tells of seconds that no part does."""
        try:
            data = self._store.do(self._store.get(self._path(_REPORT)))
        except StoreError as error:
            if error.fault.kind == "missing":
                return
            raise
        with suppress(ValidationError):  # another version's: a new one will be written
            note_report(self.folder / LEDGER, RunReport.model_validate_json(data))
            try:
                write_whole(os.fsencode(self.folder / _REPORT), data)
            except OSError as error:
                raise cannot_write(self.folder, error) from error

    def _delete_unspoken(self) -> None:
        """Delete the files of a transaction that did not come to its part."""
        try:
            intent = json.loads(self._store.do(self._store.get(self._path(f"{RECORD}/{_INTENT}"))))
        except StoreError as error:
            if error.fault.kind == "missing":
                return
            raise
        if intent["part"] == self.record.next:
            self._delete(intent["files"])

    def _clear(self) -> None:
        """Take away all that a run leaves; what is killed within is gone on with by the next one."""
        self._put(f"{RECORD}/{_CLEARING}", b"")
        self.record.delete()
        for name in (*FOLDERS, "volumes"):
            below = self._store.everything(self._path(name))
            while some := list(islice(below, _DELETED_AT_ONCE)):
                self._store.do(self._store.delete(some))
        self.scattered.forget()
        self._delete((*TABLES, LEDGER, f"{RECORD}/{_INTENT}"))
        self._delete([f"{RECORD}/{_CLEARING}"])

    def _put(self, name: str, data: bytes) -> None:
        self._store.do(self._store.put(self._path(name), data))

    def _delete(self, names: Iterable[str]) -> None:
        self._store.do(self._store.delete([self._path(name) for name in names]))

    async def _is_there(self, name: str) -> bool:
        try:
            await self._store.look(self._path(name))
        except StoreError as error:
            if error.fault.kind == "missing":
                return False
            raise
        return True

    def _path(self, name: str) -> str:
        return f"{self.address.path}/{name}"
