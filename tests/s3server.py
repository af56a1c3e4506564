"""A real S3 server on the loopback (SeaweedFS, a binary from PyPI), with its data in a folder of the test."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

KEY, SECRET = "tumorscan-test", "a-secret-that-no-output-may-show"
DENIED_KEY, DENIED_SECRET = "tumorscan-denied", "another-secret-that-no-output-may-show"
READER_KEY, READER_SECRET = "tumorscan-reader", "a-third-secret-that-no-output-may-show"
BUCKET = "slices"
_START_S = 90.0


@dataclass(slots=True)
class S3Server:
    """A server that is up. `endpoint` is where tests reach it without anything in between."""

    port: int
    folder: Path
    _files: Any = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(
        self, endpoint: str | None = None, *, key: str = KEY, secret: str = SECRET
    ) -> dict[str, str]:
        """What a user sets: the usual variables, and no file of this machine."""
        return {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(self.folder / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(self.folder / "no-credentials"),
        }

    @property
    def files(self) -> Any:
        """A file system as the administrator has it."""
        if self._files is None:
            import s3fs

            self._files = s3fs.S3FileSystem(
                key=KEY,
                secret=SECRET,
                endpoint_url=self.endpoint,
                client_kwargs={"region_name": "us-east-1"},
                skip_instance_cache=True,
                use_listings_cache=False,
            )
        return self._files

    def upload(self, folder: Path, address: str) -> None:
        """Put every file below `folder` under `address`."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.files.pipe_file(f"{address}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def below(self, address: str) -> dict[str, bytes]:
        """Every object under `address`, by its name below that."""
        prefix = address.removeprefix("s3://").rstrip("/") + "/"
        names = self.files.find(prefix)
        return {name.removeprefix(prefix): self.files.cat_file(name) for name in sorted(names)}


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Start a server on free ports; it is ended, and its data deleted, with the block."""
    program = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
    config = folder / "s3.json"
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps({"identities": [*_identities()]}))
    with ExitStack() as stack:
        ports = _free_ports(8)
        names = ("master", "volume", "filer", "s3")
        data = folder / "data"
        data.mkdir()
        line = [program, "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-filer"]
        for name, port, grpc in zip(names, ports[::2], ports[1::2], strict=True):
            line += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc}"]
        line += [f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=60"]
        line += [
            "-master.volumeSizeLimitMB=32",
            "-master.telemetry=false",
            "-s3.iam=false",
            "-s3.autoCreateBucket=false",
        ]
        log = stack.enter_context((folder / "weed.log").open("wb"))
        process = subprocess.Popen(line, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        stack.callback(_end, process, data)
        server = S3Server(ports[6], folder)
        _until_up(server, process, folder / "weed.log")
        yield server


def _identities() -> Iterator[dict[str, Any]]:
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    for name, key, secret, actions in (
        ("admin", KEY, SECRET, everything),
        ("reader", READER_KEY, READER_SECRET, [f"Read:{BUCKET}", f"List:{BUCKET}"]),
        ("denied", DENIED_KEY, DENIED_SECRET, ["Read:nothing"]),
    ):
        yield {
            "name": name,
            "credentials": [{"accessKey": key, "secretKey": secret}],
            "actions": actions,
        }


def _until_up(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise AssertionError(f"the S3 server ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            urlopen(f"{server.endpoint}/status", timeout=2).close()
            if not server.files.exists(BUCKET):
                server.files.mkdir(BUCKET)
            server.files.pipe_file(f"{BUCKET}/up", b"up")
            server.files.rm_file(f"{BUCKET}/up")
            return
        except (OSError, HTTPError):
            time.sleep(0.2)
    raise AssertionError(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")


def _end(process: subprocess.Popen[bytes], data: Path) -> None:
    process.kill()  # in order it takes ten seconds, for data that nobody wants
    process.wait()
    shutil.rmtree(data, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
