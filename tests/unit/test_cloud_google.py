"""Google's client against a server on the loopback that gives it nothing: what a user is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from engine.cloud.addresses import Address
from engine.cloud.faults import StoreError, told
from engine.cloud.store import Store
from engine.errors import MachineError

pytest.importorskip("gcsfs")

OUT = Address("gs", "bucket/folder")


class Refusing(BaseHTTPRequestHandler):
    """Answers every request with the status of its server."""

    def do_GET(self) -> None:
        status = self.server.status  # type: ignore[attr-defined]
        body = b'{"error": {"code": %d, "message": "Anonymous caller has no access"}}' % status
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{found.server_port}")
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        yield found
        found.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, r"no valid credentials \(401\): set GOOGLE_APPLICATION_CREDENTIALS or run `gcloud auth"),
        (403, r"access denied \(403\): the credentials in use may not list and read there"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_no_credentials_for_google_are_one_line(
    server: ThreadingHTTPServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: int,
    says: str,
) -> None:
    server.status = status  # type: ignore[attr-defined]
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a program that collects no logs
    store = Store("gs")
    store.patience = ()
    with pytest.raises(StoreError) as caught:
        store.do(store.folder(OUT.path))

    with pytest.raises(MachineError, match=f"^gs://bucket/folder: {says}"):
        raise told(OUT, caught.value)
    assert capfd.readouterr().err == ""
