"""Parts of a record come back as they were, or are refused; errors of clients are told as what they are."""

from __future__ import annotations

import gzip
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cloud.addresses import Address
from engine.cloud.ahead import Ahead
from engine.cloud.faults import Fault, StoreError, fault_of, told
from engine.cloud.record import Part
from engine.cloud.store import Stores
from engine.errors import Failure, MachineError, UsageError
from engine.ledger import SliceRow
from engine.sources.entries import Unlisted

TEXT = st.text(st.characters(codec="utf-8"))
ROWS = st.builds(
    SliceRow,
    order=st.binary(min_size=1),
    slice=st.integers(0, 2**31),
    volume=TEXT,
    image_path=TEXT,
    status=st.sampled_from(("ok", "quarantined")),
    size=st.integers(0, 2**62),
    mtime_ns=st.integers(-(2**62), 2**62),
    tumor_probability=st.none() | st.floats(0, 1),
    has_mask=st.none() | st.integers(0, 1),
    stem=st.binary(),
    mask_rle=TEXT,
    mask_fraction=st.none() | st.floats(0, 1),
    message=TEXT,
    transient=st.booleans(),
)


@given(st.lists(ROWS, max_size=4), st.lists(st.binary(min_size=1), max_size=3))
def test_a_part_comes_back_as_it_was(rows: list[SliceRow], forgets: list[bytes]) -> None:
    part = Part("run", {"inputs": ["data"], "threshold": 0.5}, forgets, rows, {"volume 00": "mark"})
    assert Part.unpacked(part.packed("writer"), "part") == part


def test_the_same_part_of_another_writer_is_told_apart() -> None:
    part = Part("run", {}, (), ())
    assert part.packed("one") == part.packed("one")
    assert part.packed("one") != part.packed("other")


@pytest.mark.parametrize("damage", ["cut", "other", "format", "fields"])
def test_a_damaged_part_is_refused_by_name(damage: str) -> None:
    whole = Part("run", {}, (), ()).packed("one")
    data = {
        "cut": whole[:-9],
        "other": b"hello",
        "format": gzip.compress(b'{"format": 99}\n'),
        "fields": gzip.compress(
            b'{"format": 1, "run": "r", "identity": {}, "forgets": []}\n{"order": "00"}\n'
        ),
    }[damage]
    says = (
        "has format 99" if damage == "format" else "is damaged .*: delete it, and its slices are scored again"
    )
    with pytest.raises(UsageError, match=f"^s3://b/part: {says}"):
        Part.unpacked(data, "s3://b/part")


class ClientError(Exception):
    """As botocore raises it."""

    def __init__(self, code: str) -> None:
        super().__init__(f"An error occurred ({code}), said with a 5ecret")
        self.response = {"Error": {"Code": code, "Message": "5ecret"}}


class EndpointConnectionError(OSError):
    """As botocore raises it; the real one names the endpoint."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ClientError("SlowDown"), "passing"),
        (ClientError("503"), "passing"),
        (ClientError("AccessDenied"), "denied"),
        (ClientError("404"), "missing"),
        (ClientError("ExpiredToken"), "credentials"),
        (ClientError("PreconditionFailed"), "taken"),
        (ClientError("InvalidBucketName"), "refused"),
        (OSError("Forbidden: b/o\nsaid with a 5ecret"), "denied"),  # as gcsfs raises it
        (FileNotFoundError("x"), "missing"),
        (PermissionError("x"), "denied"),
        (TimeoutError(), "passing"),
        (EndpointConnectionError("http://user:5ecret@host"), "passing"),
        (ConnectionResetError(), "passing"),
        (ValueError("5ecret"), "refused"),
    ],
)
def test_errors_of_clients_are_told_as_what_they_are_without_their_words(error: Exception, kind: str) -> None:
    fault = fault_of(error)
    assert fault.kind == kind
    assert "5ecret" not in str(told(Address("s3", "b"), StoreError(fault)))


def test_the_cause_tells_more_than_its_translation() -> None:
    translated = PermissionError("Forbidden")
    translated.__cause__ = ClientError("InvalidAccessKeyId")
    assert fault_of(translated) == Fault("credentials", "InvalidAccessKeyId")


def test_what_lies_on_a_disk_is_passed_on_at_once_and_opens_no_store() -> None:
    entry = Unlisted("x", b"1", Failure("discover", "io", "?"))
    with Ahead(Stores(), threading.Event()) as ahead:
        assert list(ahead.fetched([entry, None, entry])) == [entry, None, entry]


def test_a_store_that_stays_away_is_the_machines_fault_and_a_missing_bucket_the_users() -> None:
    assert isinstance(told("s3://b", StoreError(Fault("passing", "x"))), MachineError)
    assert isinstance(told("s3://b", StoreError(Fault("missing", "x"))), UsageError)
