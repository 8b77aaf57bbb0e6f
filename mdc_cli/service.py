"""`mdc up`: the API and workers on this machine, without other servers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import httpx
import typer
from pydantic import ValidationError

from mdc_cli.output import say
from mdc_core.errors import MdcError

if TYPE_CHECKING:
    from server.settings import Settings

START_SECONDS = 60
STOP_SECONDS = 150
"""Longer than a job gets to write its checkpoint."""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(up)


def up(
    data_dir: Annotated[
        Path, typer.Option(help="Folder for the database, objects and keys.", envvar="MDC_DATA_DIR")
    ] = Path("mdc-data"),
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar="MDC_HOST")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for a free one.", envvar="MDC_PORT")
    ] = 8000,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Worker processes; each runs one job.")] = 1,
) -> None:
    """Start the API and workers. Ctrl-C stops them; running jobs resume at the next start."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    port = _checked_port(host, port)
    os.environ.update({"MDC_DATA_DIR": str(data_dir), "MDC_HOST": host, "MDC_PORT": str(port)})
    settings = _settings()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    log = settings.data_dir / "service.log"
    url = f"http://{host}:{port}"
    children: list[subprocess.Popen[bytes]] = []
    try:
        children.append(_start(_api_command(host, port), log))
        if _is_ready(url, children[0], log, stop):
            for _ in range(workers):
                children.append(_start(["worker"], log))
            _announce(url, settings, log)
        while not stop.wait(0.5):
            for child in children:
                _refuse_ended(child, log)
        say("Stopping. Running jobs write their checkpoints first.")
    finally:
        _stop(children)


def _settings() -> Settings:
    """The service's settings. `MdcError` names the missing extra or the invalid setting."""
    try:
        from server.settings import Settings, wrong_settings
    except ModuleNotFoundError as error:
        raise MdcError(
            f"the service needs {error.name}: run pip install 'multisize-condensation[worker]'"
        ) from error
    try:
        return Settings()
    except ValidationError as error:
        raise MdcError(wrong_settings(error)) from error


def _api_command(host: str, port: int) -> list[str]:
    return ["server", "--host", host, "--port", str(port)]


def _announce(url: str, settings: Settings, log: Path) -> None:
    """Print what to do next; the demo waits for the last line."""
    say(f"API        {url}   (documentation: {url}/docs)")
    if settings.embedded:
        say(f"Admin key  {settings.data_dir / 'admin.key'}")
    say(f"Log        {log}")
    say("Next       mdc submit digits --watch      Ctrl-C stops everything")


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Run a module until it is stopped, or until this process ends.

    It gets its own session, so Ctrl-C only reaches `mdc up`, which then stops its children in order.
    """
    whole = [sys.executable, "-m", "mdc_cli.run_with_parent", *command]
    with log.open("ab") as output:
        return subprocess.Popen(
            whole, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )


def _is_ready(url: str, api: subprocess.Popen[bytes], log: Path, stop: threading.Event) -> bool:
    """Wait for the API. False if asked to stop meanwhile; `MdcError` if it does not start."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        _refuse_ended(api, log)
        try:
            if httpx.get(f"{url}/readyz", timeout=5).is_success:
                return True
        except httpx.TransportError:
            pass
        if stop.wait(0.1):
            return False
    raise MdcError(f"the API was not ready within {START_SECONDS} s: see {log} for the reason")


def _refuse_ended(child: subprocess.Popen[bytes], log: Path) -> None:
    """Raise `MdcError` with the end of the log if a process has ended."""
    if child.poll() is not None:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise MdcError(f"a process ended with status {child.returncode}; {log} ends with:\n{last}")


def _stop(children: list[subprocess.Popen[bytes]]) -> None:
    """Send SIGTERM to all of them at once; kill those that do not end in time."""
    deadline = time.monotonic() + STOP_SECONDS
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _checked_port(host: str, port: int) -> int:
    """The port, or a free one for 0. `MdcError` if it cannot be used."""
    try:
        with socket.create_server((host, port)) as listener:
            free: int = listener.getsockname()[1]
            return free
    except OSError as error:
        raise MdcError(
            f"cannot listen on {host}:{port} ({error.strerror}): stop the process there, or choose another --port"
        ) from error
