"""Whose address counts: the proxy's word is taken from configured addresses alone, through a real nginx as well."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.services import free_port, process

pytestmark = pytest.mark.process

OPERATIONS = Path(__file__).resolve().parents[2] / "docs/how-to/operations.md"
GUESS = {"Authorization": "Bearer mdc_0123456789abcdef_" + "x" * 43}


def serving(port: int) -> list[str]:
    return [sys.executable, "-m", "server", "--port", str(port)]


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MDC_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MDC_REFUSAL_RATE", "2/hour")
    return tmp_path


def guesses(url: str, *addresses: str) -> list[int]:
    """Statuses of three wrong keys in a row, each said to come from another address."""
    return [
        httpx.get(f"{url}/v1/jobs", headers=GUESS | {"X-Forwarded-For": address}).status_code
        for address in addresses
    ]


def test_nobody_passes_for_another_address_by_default(folder: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    with process(serving(port), lambda: answers(url)):
        assert guesses(url, "10.0.0.1", "10.0.0.2", "10.0.0.3") == [401, 401, 429]


def test_a_trusted_proxy_tells_clients_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MDC_TRUSTED_PROXIES", "10.1.0.0/16, 127.0.0.1")
    url = f"http://127.0.0.1:{(port := free_port())}"
    with process(serving(port), lambda: answers(url)):
        assert guesses(url, "10.0.0.1", "10.0.0.2", "10.0.0.3") == [401, 401, 401]
        # What the client itself has sent stands before what the proxy added.
        assert guesses(url, "1.1.1.1, 10.0.0.9", "2.2.2.2, 10.0.0.9", "3.3.3.3, 10.0.0.9") == [401, 401, 429]


@pytest.fixture
def nginx(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an nginx with the documented configuration, without its TLS."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/bin")
    if program is None:
        pytest.skip("nginx is not installed")
    monkeypatch.setenv("MDC_TRUSTED_PROXIES", "127.0.0.1")
    api, port = free_port(), free_port()
    documented = re.search(r"```nginx\n(.*?)```", OPERATIONS.read_text(), re.DOTALL)
    assert documented
    site = documented[1].replace("127.0.0.1:8000", f"127.0.0.1:{api}")
    site = site.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    paths = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}"
        f"http {{ access_log off; {paths} {site} }}"
    )
    url, command = f"http://127.0.0.1:{port}", [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    with (
        process(serving(api), lambda: answers(f"http://127.0.0.1:{api}")),
        process(command, lambda: answers(url)),
    ):
        yield url


def test_behind_nginx_as_documented_a_client_cannot_choose_its_address(nginx: str) -> None:
    assert guesses(nginx, "10.0.0.1", "10.0.0.2", "10.0.0.3") == [401, 401, 429]


def test_behind_nginx_headers_are_bounded(nginx: str) -> None:
    large = {f"x-{number}": "x" * 6000 for number in range(8)}
    assert httpx.get(f"{nginx}/healthz", headers=large).status_code in (400, 431)
    assert httpx.get(f"{nginx}/healthz", headers={"x-a": "x" * 6000}).status_code == 200
