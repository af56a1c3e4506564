"""The look worker: a process that looks at folders and files, ahead of a walk that has other things to do.

It is started as `python -m engine.look_worker` with one inherited descriptor, a stream. Asked "list" with a
folder's path it answers with `listed`'s; asked "look" with a folder's path and names behind zero bytes, with
the array of `look_at`. Both as bytes, without any where it cannot be had.
"""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH118

from __future__ import annotations

import os
import pickle
import socket
import sys
from array import array
from itertools import chain, islice
from typing import Final

from engine.channel import receive, send
from engine.child import die_with
from engine.sources.folders import Listing, is_picture, natural_key, sort_names
from engine.sources.series import is_dicom
from engine.sources.statuses import NO_FILE, Statuses, look_at

LARGEST: Final = 20_000
"""Names of a folder that is listed ahead: all of one that is larger would be held twice."""

Found = tuple[list[bytes], Statuses, Listing]
"""Names of pictures, their statuses, and the listing of all others."""


def main() -> None:
    """Serve the process that started this one until it goes away."""
    parent, channel = (int(argument) for argument in sys.argv[1:])
    die_with(parent)
    with socket.socket(fileno=channel) as asker:
        while (message := receive(asker)) is not None:
            what, data = message
            if what == "list":
                found = listed(data)
                answer = b"" if found is None else pickle.dumps(found, pickle.HIGHEST_PROTOCOL)
            else:
                folder, *names = data.split(b"\0")
                answer = look_at(folder, names).tobytes()
            send(asker, None, answer)


def listed(path: bytes) -> Found | None:
    """What a folder holds, None where that cannot be had or is too much."""
    pictures: list[bytes] = []
    others: list[os.DirEntry[bytes]] = []
    try:
        with os.scandir(path) as entries:
            for entry in islice(entries, LARGEST):
                if is_picture(entry.name):
                    pictures.append(entry.name)
                else:
                    others.append(entry)
            if next(entries, None) is not None:
                return None
            return pictures, look_at(os.path.join(path, b""), pictures), sort_names(others, None, is_dicom)
    except (OSError, ValueError):
        return None


def listing_of(found: Found) -> Listing:
    """A folder's listing with the statuses of its names, made of what `listed` gave."""
    pictures, statuses, listing = found
    keys = map(natural_key, pictures)
    looked_at = [*zip(keys, pictures, statuses[::2], statuses[1::2], strict=True)]
    looked_at += [(key, name, NO_FILE, 0) for key, name in listing.names]
    looked_at.sort()
    listing.names = [(key, name) for key, name, _, _ in looked_at]
    listing.statuses = array("q", chain.from_iterable((size, mtime_ns) for _, _, size, mtime_ns in looked_at))
    return listing


if __name__ == "__main__":
    main()
