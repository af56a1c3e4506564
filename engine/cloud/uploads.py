"""Slices' files on their way from a folder of this machine into an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from engine.cloud.addresses import Address
from engine.cloud.faults import StoreError, told
from engine.cloud.store import Store
from engine.ledger import SliceRow
from engine.outputs.leftovers import FOLDERS
from engine.rows import name_of
from engine.text import shown

_WHOLE_BYTES: Final = 2**24
"""Files that are longer go up in pieces, which the store then joins at once."""


class Uploads:
    """What was written below `folder` as below the output at `address`."""

    def __init__(self, store: Store, address: Address, folder: Path) -> None:
        self._store = store
        self._address = address
        self._folder = folder

    def of(self, rows: Sequence[SliceRow]) -> Iterator[tuple[str, Path]]:
        """The files that were written for `rows`: their names below the output, and where they are here."""
        for row in rows:
            if row.status == "ok":
                for folder in FOLDERS:
                    name = name_of(folder, row.stem)
                    path = self._folder / os.fsdecode(name)
                    if path.exists():
                        yield shown(name), path

    def put(self, files: Sequence[tuple[str, Path]]) -> None:
        """Have them there. Raises what `told` gives."""

        async def one(name: str, path: Path) -> None:
            there = f"{self._address.path}/{name}"
            if path.stat().st_size > _WHOLE_BYTES:
                await self._store.put_file(there, path)
            else:
                await self._store.put(there, path.read_bytes())

        try:
            self._store.do(self._store.together(one(name, path) for name, path in files))
        except StoreError as error:
            raise told(self._address, error, writing=True) from error

    def discard(self, rows: Sequence[SliceRow]) -> None:
        """Delete the files of `rows` here: they are there."""
        for _, path in self.of(rows):
            path.unlink(missing_ok=True)
