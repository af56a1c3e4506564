"""Slices' files that others than a run's own machine put into its store, as the workers of a cluster do.

Whoever hands slices out says so first, and takes the word back when their rows are in the record. What a kill
leaves in between are words without rows: the next run deletes the files that they may speak of.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from engine.cloud.addresses import Address
from engine.cloud.faults import StoreError, told
from engine.cloud.record import RECORD
from engine.cloud.store import Store, Stores
from engine.ledger import SliceRow
from engine.outputs.leftovers import FOLDERS
from engine.rows import name_of
from engine.sources.entries import SourceFile, Unlisted
from engine.text import shown

_UNITS: Final = f"{RECORD}/units"


class Scattered:
    """The words of one run at a time. Its calls raise what `told` gives."""

    def __init__(self, store: Store, address: Address) -> None:
        self._store = store
        self._address = address

    def intend(self, unit: int, entries: Iterable[SourceFile | Unlisted]) -> None:
        """Say that the files of these slices may come, before they are handed out as `unit`."""
        stems = [each.mask_stem.hex() for each in entries if isinstance(each, SourceFile)]
        with self._told():
            self._store.do(self._store.put(self._path(_name(unit)), json.dumps(stems).encode()))

    def fulfil(self, units: Iterable[int]) -> None:
        """Say that the rows of these units are in the record."""
        with self._told():
            self._store.do(self._store.delete([self._path(_name(unit)) for unit in units]))

    def clear(self, rows: Callable[[], Iterable[SliceRow]]) -> None:
        """Delete what no row speaks of, after a run that was killed. `rows` gives the record's."""
        with self._told():
            words = self._words()
            if not words:
                return
            stems: set[bytes] = set()
            for word in words:
                stems.update(map(bytes.fromhex, json.loads(self._store.do(self._store.get(word)))))
            kept = _kept(stems, rows())
            doomed = (stem for stem in stems if stem not in kept.get(stem, ()))
            self._store.do(self._store.together(self._delete(stem, kept.get(stem, ())) for stem in doomed))
            self._store.do(self._store.delete(words))

    def forget(self) -> None:
        """Take back every word: no file is there any more."""
        with self._told():
            self._store.do(self._store.delete(self._words()))

    def _words(self) -> list[str]:
        folder = self._path(_UNITS)
        return [f"{folder}/{each.name}" for each in self._store.do(self._store.folder(folder))]

    async def _delete(self, stem: bytes, kept: Collection[bytes]) -> None:
        """Delete the files of a picture, and of those of its pages that are not `kept`."""
        doomed = [shown(name_of(folder, stem)) for folder in FOLDERS]
        for folder in FOLDERS:
            pages = await self._store.folder(self._path(f"{folder}/{shown(stem)}"))
            known = {shown(name_of(folder, each)) for each in kept}
            names = (f"{folder}/{shown(stem)}/{each.name}" for each in pages if not each.folder)
            doomed += [name for name in names if name not in known]
        await self._store.delete([self._path(name) for name in doomed])

    def _path(self, name: str) -> str:
        return f"{self._address.path}/{name}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            raise told(self._address, error, writing=True) from error


@contextmanager
def token_in(address: Address, name: str) -> Iterator[str]:
    """The address of an object below `address` that is there for this block."""
    store = Stores().of(address)
    there = address / f"{RECORD}/{name}"
    try:
        store.do(store.put(there.path, b""))
    except StoreError as error:
        raise told(address, error, writing=True) from error
    try:
        yield str(there)
    finally:
        with suppress(StoreError):  # the run's own end is told
            store.do(store.delete([there.path]))


def expect_token(token: str) -> None:
    """Raise what `told` gives unless what `token_in` put there can be read."""
    address = Address.parse(token)
    store = Stores().of(address)
    try:
        store.do(store.get(address.path))
    except StoreError as error:
        raise told(address, error, writing=True) from error


def _kept(stems: Collection[bytes], rows: Iterable[SliceRow]) -> Mapping[bytes, set[bytes]]:
    """What `rows` speak of, by those of `stems` that are it or the picture whose page it is."""
    kept: dict[bytes, set[bytes]] = {}
    for row in rows:
        if row.status == "ok":
            for stem in {row.stem, os.path.dirname(row.stem)}.intersection(stems):  # noqa: PTH120 - bytes
                kept.setdefault(stem, set()).add(row.stem)
    return kept


def _name(unit: int) -> str:
    return f"{_UNITS}/{unit:08d}.json"
