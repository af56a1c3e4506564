"""Shards whose outputs are in object stores: what of them is on this disk while they are merged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from engine.cloud.addresses import Address, local, of_path
from engine.cloud.faults import StoreError, told
from engine.cloud.record import RECORD, Record
from engine.cloud.store import Store, Stores
from engine.cloud.stored import bring_up_to_date, holds_all
from engine.disk import cannot_write
from engine.errors import MachineError, UsageError
from engine.lock import FileLock, LockHeldError
from engine.outputs.leftovers import FOLDERS, TABLES
from engine.run import LEDGER
from engine.text import shown

_FOLDER: Final = ".shards"


@contextmanager
def copies_in(out: Path) -> Iterator[Copies]:
    """Copies below `out` for this block, in which errors name the stores instead of them."""
    was_there = out.exists()
    copies = Copies(out / _FOLDER)
    try:
        if (out / _FOLDER).exists():  # what a killed merge left
            copies.claim()
        yield copies
    except (MachineError, UsageError) as error:
        raise type(error)(copies.told(str(error))) from error
    finally:
        copies.delete()
        if not was_there:
            with suppress(OSError):  # what was merged is in it
                out.rmdir()


class Copies:
    """A folder for each shard that is in a store, filled as its files are asked for."""

    def __init__(self, folder: Path) -> None:
        """Use `copies_in`."""
        self._folder = folder
        self._stores = Stores()
        self._addresses: dict[Path, Address] = {}
        self._lock: FileLock | None = None

    def __contains__(self, folder: Path) -> bool:
        """Whether `folder` is one of these."""
        return folder in self._addresses

    def claim(self) -> None:
        """Have the folder to oneself, empty. Raises UsageError while another merge has it, MachineError."""
        if self._lock is not None:
            return
        out = self._folder.parent
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock.acquire(self._folder.with_suffix(".lock"))
        except LockHeldError as held:
            raise UsageError(
                f"{shown(out)}: another merge ({held.holder}) is writing here: "
                "wait for its end, or give another --out"
            ) from None
        except OSError as error:
            raise cannot_write(out, error) from error
        shutil.rmtree(self._folder, ignore_errors=True)

    def begin(self, shard: Path) -> Path:
        """The folder of `shard`: itself, or where its ledger and tables are now.

        Raises UsageError where there is no such bucket, MachineError where a store does not answer or denies.
        """
        address = of_path(shard)
        if address is None:
            return local(shard)
        known = {str(each): folder for folder, each in self._addresses.items()}
        if str(address) in known:
            return known[str(address)]
        self.claim()
        folder = self._folder / f"{len(known)}"
        self._addresses[folder] = address
        store = self._stores.of(address)
        try:
            folder.mkdir(parents=True)
            there = {each.name for each in store.do(store.folder(address.path)) if not each.folder}
            _fetch(store, address, [(name, folder / name) for name in (LEDGER, *TABLES) if name in there])
        except StoreError as error:
            raise told(address, error) from error
        except OSError as error:
            raise cannot_write(self._folder.parent, error) from error
        record = Record(store, address / RECORD, writer="")
        if record.numbers and not holds_all(folder / LEDGER, record):
            # A run that goes on: its ledger as it is now has no seal.
            (folder / LEDGER).unlink(missing_ok=True)
            bring_up_to_date(folder / LEDGER, record)
        return folder

    def fetch(self, folder: Path, names: Iterable[bytes]) -> None:
        """Have files of a shard there, as far as the store has them. Raises OSError, MachineError."""
        address = self._addresses[folder]
        wanted = [(shown(name), folder / os.fsdecode(name)) for name in names]
        try:
            _fetch(self._stores.of(address), address, wanted)
        except StoreError as error:
            raise told(address, error) from error

    def fetch_volumes(self, folder: Path) -> None:
        """Have the masks of a shard's volumes there. Raises as `fetch` does."""
        address = self._addresses[folder]
        below = f"{address.path}/"
        try:
            found = [*self._stores.of(address).everything(f"{below}volumes")]
        except StoreError as error:
            raise told(address, error) from error
        self.fetch(folder, (os.fsencode(path.removeprefix(below)) for path in found))

    def discard(self) -> None:
        """Let go of slices' files: those that are wanted have a second name by now."""
        for folder in self._addresses:
            for name in FOLDERS:
                shutil.rmtree(folder / name, ignore_errors=True)

    def delete(self) -> None:
        """Let go of everything."""
        if self._lock is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.release()
            self._lock = None

    def told(self, text: str) -> str:
        """`text` with the stores' addresses in the place of their folders here."""
        for folder, address in self._addresses.items():
            text = text.replace(shown(folder), str(address))
        return text


def _fetch(store: Store, address: Address, files: Iterable[tuple[str, Path]]) -> None:
    """Copy objects below `address`, those that are there. Raises StoreError, OSError."""

    async def one(name: str, path: Path) -> None:
        try:
            data = await store.get(f"{address.path}/{name}")
        except StoreError as error:
            if error.fault.kind != "missing":
                raise
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    store.do(store.together(one(name, path) for name, path in files))
