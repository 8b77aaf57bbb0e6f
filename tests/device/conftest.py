"""A real HTTP server on this machine that delivers one set, and misbehaves when it is told to."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from mdc_core.delivery import rankmajor
from mdc_core.delivery.cost import Cost
from mdc_core.delivery.manifest import build_manifest
from mdc_core.delivery.signing import PrivateKey, jwks, sign
from mdc_device import backoff

KEY = "mdc_1_secret"
SIGNER = PrivateKey(bytes(range(32)))


@dataclass
class Device:
    """The served set and the server's moods; tests change it between requests."""

    info: rankmajor.SetInfo
    obj: bytes
    manifest: dict[str, Any]
    url: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    drop_after: list[int] = field(default_factory=list)
    """Bytes of body after which the next answers break off."""
    corrupt: dict[int, int] = field(default_factory=dict)
    """Offset in the file: how many more times its byte is served wrong."""
    ignore_ranges: bool = False
    wrong_range: bool = False
    etag: str | None = None
    signer: PrivateKey | None = SIGNER
    """Signs the manifests; None: this server does not sign."""
    keyset: dict[str, Any] | None = field(default_factory=lambda: jwks([SIGNER.public]))
    """What is at /v1/keyset; None: nothing."""
    status: int | None = None
    problem: dict[str, Any] | None = None
    hold: threading.Event | None = None
    """When there: half a body is sent, `held` is set, and the rest waits for it."""
    held: threading.Event = field(default_factory=threading.Event)
    versions: dict[int, Device] = field(default_factory=dict)
    """Other versions of the set that are served under their numbers."""
    altered: Callable[[bytes], tuple[str, bytes]] | None = None
    """Makes of a manifest the media type and body that are sent in its place."""
    sent_bytes: int = 0
    """Of the bodies of subsets so far."""
    store: str | None = None
    """Where the object is as well: requests for bytes that it has too are sent there."""

    @property
    def version(self) -> int:
        return int(self.manifest["version"])

    def named(self, reference: str) -> Device | None:
        """The version that `toy` or `toy@2` names."""
        name, _, number = reference.partition("@")
        if name != "toy" or number in ("", str(self.version)):
            return self if name == "toy" else None
        return self.versions.get(int(number))

    def subset(self, k: int) -> bytes:
        return rankmajor.subset(self.obj, self.info, k)

    def ranges(self) -> list[str | None]:
        """The Range headers of the requests for subsets so far."""
        return [headers.get("range") for path, headers in self.requests if path.startswith("/subsets/")]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    device: Device

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        device = self.device
        headers = {name.lower(): value for name, value in self.headers.items()}
        device.requests.append((self.path, headers))
        url = urlsplit(self.path)
        if url.path == "/v1/keyset" and device.keyset is not None:
            self.answer(200, json.dumps(device.keyset).encode(), {})
        elif headers.get("authorization") != f"Bearer {KEY}":
            self.refuse(401, {"code": "unauthorised", "detail": "this key is not known: ask for another"})
        elif device.status is not None:
            self.refuse(device.status, device.problem)
        elif (match := re.fullmatch(r"/v1/sets/(.+)/manifest", url.path)) and (
            named := device.named(match[1])
        ):
            text = json.dumps(named.manifest).encode()
            assert headers["accept"].startswith("application/jose")
            if device.altered is not None:
                kind, body = device.altered(text)
                self.answer(200, body, {"Content-Type": kind})
            elif device.signer is not None:
                self.answer(200, sign(text, device.signer).encode(), {"Content-Type": "application/jose"})
            else:
                self.answer(200, text, {"Content-Type": "application/json"})
        elif (match := re.fullmatch(r"/subsets/(\d+)", url.path)) and (
            named := device.named(parse_qs(url.query)["set"][0])
        ):
            self.deliver(named, int(match[1]), headers)
        else:
            self.refuse(404, {"code": "set-not-found", "detail": "there is no such set: list them"})

    def deliver(self, device: Device, k: int, headers: dict[str, str]) -> None:
        data = bytearray(device.subset(k))
        size = len(data)
        etag = f'"{device.etag or rankmajor.sha256(data)}"'
        # The rule of the service: the store has another header, entity tags of its own, and more bytes at the end.
        begins = re.match(r"bytes=(\d+)-\d+", headers.get("range", ""))
        in_store = int(begins[1]) >= rankmajor.header_size(device.info) if begins else k == device.info.ipc
        if device.store is not None and in_store and "if-match" not in headers:
            return self.answer(302, b"", {"Location": device.store, "Cache-Control": "no-store"})
        for offset in [offset for offset, times in device.corrupt.items() if times > 0]:
            data[offset] ^= 0xFF
        status, start, end, extra = 200, 0, size, {"ETag": etag}
        if "range" in headers and not device.ignore_ranges:
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", headers["range"])
            assert match, "only closed ranges are asked for"
            status, start, end = 206, int(match[1]), int(match[2]) + 1
            assert start < end <= size
            extra["Content-Range"] = f"bytes {start + device.wrong_range}-{end - 1}/{size}"
        for offset in device.corrupt:
            device.corrupt[offset] -= start <= offset < end
        return self.answer(status, bytes(data[start:end]), extra)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.path.startswith("/subsets/"):
            self.device.sent_bytes += len(body)
        if self.path.startswith("/subsets/") and self.device.drop_after:
            body = body[: self.device.drop_after.pop(0)]
            self.close_connection = True
        if self.path.startswith("/subsets/") and self.device.hold is not None:
            self.wfile.write(body[: len(body) // 2])
            self.device.held.set()
            self.device.hold.wait(timeout=30)
            self.close_connection = True
            return
        self.wfile.write(body)

    def refuse(self, status: int, problem: dict[str, Any] | None) -> None:
        kind = "application/problem+json" if problem else "text/plain"
        self.answer(status, json.dumps(problem).encode() if problem else b"no", {"Content-Type": kind})


def served_set(version: int = 1, seed: int = 0, ipc: int = 5, side: int = 9) -> Device:
    info = rankmajor.SetInfo(ipc, 2, ("cat", "dog", "owl"), (0.5,), (0.25,), side, 1)
    tiles = np.random.default_rng(seed).integers(0, 256, info.tile_shape(ipc), dtype=np.uint8)
    obj = rankmajor.pack(tiles, info)
    row = {"network": "net", "epochs": 3, "mdc_std": 0.0, "repeats": 2}
    manifest = build_manifest(
        name="toy",
        version=version,
        created="2020-01-01T00:00:00Z",
        expires=None,
        info=info,
        digests=rankmajor.digests(obj, info),
        object_url="/objects/toy",
        network={"name": "net"},
        recipe={"epochs": 3},
        accuracy=[{**row, "k": k, "mdc_mean": 0.5 + k / 20} for k in range(1, ipc + 1)],
        cost={"net": Cost(parameters=100, activation_bytes=10, flops_per_image=1e6)},
    )
    return Device(info=info, obj=obj, manifest=manifest)


@contextmanager
def serving(served: Device, tls: ssl.SSLContext | None = None) -> Iterator[Device]:
    """The set over HTTP on this machine, or with `tls` over HTTPS."""
    handler = type("ToyHandler", (Handler,), {"device": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    served.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The key in the environment, no memory of other servers, and next to no waiting before another attempt."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    monkeypatch.setenv("MDC_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,.example")
    monkeypatch.setattr(backoff, "FIRST_S", 0.001)


@pytest.fixture
def device() -> Iterator[Device]:
    """The set `toy` of ipc 5, served."""
    with serving(served_set()) as served:
        yield served


@pytest.fixture
def device10() -> Iterator[Device]:
    """The set `toy` of ipc 10, served."""
    with serving(served_set(ipc=10)) as served:
        yield served
