"""The look worker: a process that looks at folders and files, ahead of a walk that has other things to do.

It is started as `python -m engine.look_worker` with one inherited descriptor, a stream. Asked "look" with a
folder's path and names behind zero bytes it answers null, with the array of `look_at` behind it; asked "list"
with a folder's path, `told` of what it holds, or null alone where that cannot be had.
"""

# pathlib refuses names that are bytes.
# ruff: noqa: PTH118

from __future__ import annotations

import os
import socket
import sys
from array import array
from itertools import chain, islice
from typing import Any, Final

from engine.channel import receive, send
from engine.child import die_with
from engine.sources.folders import Listing, is_picture, natural_key, sort_names
from engine.sources.series import is_dicom
from engine.sources.statuses import NO_FILE, Statuses, look_at

LARGEST: Final = 20_000
"""Names of a folder that is listed ahead: all of one that is larger would be held twice."""

Found = tuple[list[bytes], Statuses, Listing]
"""Names of pictures, their statuses, and the listing of all others."""
Answer = tuple[Any, bytes]


def main() -> None:
    """Serve the process that started this one until it goes away."""
    parent, channel = (int(argument) for argument in sys.argv[1:])
    die_with(parent)
    with socket.socket(fileno=channel) as asker:
        while (message := receive(asker)) is not None:
            what, data = message
            if what == "list":
                found = listed(data)
                answer = (None, b"") if found is None else told(found)
            else:
                folder, *names = data.split(b"\0")
                answer = None, look_at(folder, names).tobytes()
            send(asker, *answer)


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


def told(found: Found) -> Answer:
    """What `listed` gave, as a message: [bytes of names, names of others, odd ones, DICOM files, masks passed
    over, others passed over], names as latin-1 text; behind it pictures' names between zero bytes, and their
    statuses.
    """
    pictures, statuses, listing = found
    names = b"\0".join(pictures)
    others, dicoms = ([name for _, name in each] for each in (listing.names, listing.dicoms))
    texts = [[name.decode("latin-1") for name in each] for each in (others, sorted(listing.odd), dicoms)]
    return [len(names), *texts, listing.masks, listing.others], names + statuses.tobytes()


def listing_of(answer: Answer) -> Listing | None:
    """The listing, with the statuses of its names, of a folder that the worker was asked for."""
    message, data = answer
    if message is None:
        return None
    length, *texts, masks, passed_over = message
    others, odd, dicoms = ([name.encode("latin-1") for name in each] for each in texts)
    pictures = data[:length].split(b"\0") if length else []
    statuses = array("q", data[length:])
    looked_at = [*zip(map(natural_key, pictures), pictures, statuses[::2], statuses[1::2], strict=True)]
    looked_at += [(natural_key(name), name, NO_FILE, 0) for name in others]
    looked_at.sort()
    listing = Listing(
        [(key, name) for key, name, _, _ in looked_at], set(odd), masks=masks, others=passed_over
    )
    for name in dicoms:
        listing.dicoms.add(natural_key(name), name)
    listing.statuses = array("q", chain.from_iterable((size, mtime_ns) for _, _, size, mtime_ns in looked_at))
    return listing


if __name__ == "__main__":
    main()
