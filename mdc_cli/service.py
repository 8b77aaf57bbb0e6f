"""`mdc up`: the API and a worker on this machine, with no server to install."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import httpx
import typer

from mdc_cli.output import people
from mdc_core.errors import MdcError
from server.settings import Settings

START_SECONDS = 60
STOP_SECONDS = 150
"""More than a job's grace for its checkpoint."""


class _Stop(Exception):
    """SIGTERM or Ctrl-C."""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(up)


def up(
    data_dir: Annotated[Path, typer.Option(help="Database, objects and keys.", envvar="MDC_DATA_DIR")] = Path(
        "mdc-data"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar="MDC_HOST")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", envvar="MDC_PORT")] = 8000,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Worker processes; each runs one job.")] = 1,
) -> None:
    """Start the API and a worker; Ctrl-C stops both, and running jobs go on at the next start."""
    port = port or _free_port(host)
    environment = os.environ | {"MDC_DATA_DIR": str(data_dir), "MDC_HOST": host, "MDC_PORT": str(port)}
    os.environ.update(environment)
    settings = Settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    _refuse_taken_port(host, port)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_stop)
    api = [sys.executable, "-m", "uvicorn", "--factory", "server.app:app_from_env", "--no-access-log"]
    api += ["--host", host, "--port", str(port), "--log-level", "warning"]
    url = f"http://{host}:{port}"
    log = settings.data_dir / "service.log"
    children: list[subprocess.Popen[bytes]] = []
    try:
        children.append(_start(api, log))
        _wait_until_ready(url, children[0], log)
        children += [_start([sys.executable, "-m", "worker"], log) for _ in range(workers)]
        people.print(f"API        {url}   (description: {url}/docs)")
        if settings.embedded:
            people.print(f"Admin key  {settings.data_dir / 'admin.key'}", soft_wrap=True)
        people.print(f"Log        {log}", soft_wrap=True)
        people.print("Next       mdc submit digits --watch      Ctrl-C stops everything")
        _watch(children, log)
    except _Stop:
        people.print("Stopping; a running job writes its checkpoint first.")
    finally:
        _stop(children)


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A session of its own: Ctrl-C in the terminal reaches `mdc up` alone, which stops its children in order."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def _wait_until_ready(url: str, api: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        _refuse_ended(api, log)
        try:
            if httpx.get(f"{url}/readyz", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise MdcError(f"the API was not ready within {START_SECONDS} s: see {log} for the reason")


def _watch(children: list[subprocess.Popen[bytes]], log: Path) -> None:
    """Wait until a child ends by itself, which none of them should."""
    while True:
        for child in children:
            _refuse_ended(child, log)
        time.sleep(0.5)


def _refuse_ended(child: subprocess.Popen[bytes], log: Path) -> None:
    """Raise `MdcError` with the end of the log when a process has ended."""
    if child.poll() is not None:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise MdcError(f"a process ended with status {child.returncode}; {log} ends with:\n{last}")


def _stop(children: list[subprocess.Popen[bytes]]) -> None:
    """TERM to all of them at once; whoever is not done in time is killed."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    deadline = time.monotonic() + STOP_SECONDS
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _raise_stop(_signal: int, _frame: FrameType | None) -> None:
    raise _Stop


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _refuse_taken_port(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise MdcError(
            f"cannot listen on {host}:{port} ({error.strerror}): stop what listens there, or choose another --port"
        ) from error
