"""The service as an installation of its own: API, workers and the servers that they need, in a folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import create_engine, text

from mdc_core.delivery.signing import dump_private_keys, new_key
from server.store import migrate
from tests.services import free_port, s3_bucket

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
SECRET = b"benchmark" * 4
CONDENSE = {
    "ipc": 2,
    "network": {"depth": 1, "width": 4},
    "outer_loops": 12,
    "inner_iterations": 1,
    "mls_period": 2,
    "n_data": 16,
    "batch_real": 4,
    "factor": 1,
}
EVALUATE = {"network": {"depth": 1, "width": 4}, "epochs": 1, "repeats": 1, "random_baseline": False}
"""The smallest job: it takes seconds."""
SETTINGS = {
    "LEASE_SECONDS": "6",
    "LEASE_RENEW_SECONDS": "1",
    "CHECKPOINT_SECONDS": "0",
    "KILL_GRACE_SECONDS": "20",
    "MAX_ATTEMPTS": "1000",
    "SWEEP_AGE_SECONDS": "0",
    "THREADS": "1",
}


class Server:
    """A process that is started again whenever it ends."""

    def __init__(
        self, name: str, command: list[str], environment: dict[str, str], log: Path, user: str | None
    ) -> None:
        self.name = name
        self.kill_signal = signal.SIGQUIT if name == "postgresql" else signal.SIGKILL
        self._command, self._environment, self._log, self._user = command, environment, log, user
        self.starts = 0
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start it, once more."""
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=self._user,
                cwd=self._log.parent,
                start_new_session=True,
            )
        self.starts += 1

    def kill(self) -> None:
        """End it as hard as it can bear, and start it again."""
        self.process.send_signal(self.kill_signal)
        self.process.wait()
        self.start()

    def attempts(self) -> list[int]:
        """Process ids of the attempts of a worker."""
        listed = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(line.split()[0]) for line in listed.stdout.splitlines() if "worker.runner" in line]


class Installation:
    """The service of one size in a folder, with all the servers that it needs, ready for requests.

    They run in sessions of their own, so that Ctrl-C ends the benchmark, which then ends them. SIGTERM does the same.
    """

    def __init__(self, size: str, folder: Path, cleanup: ExitStack, workers: int = WORKERS) -> None:
        self.size, self.folder = size, folder
        self.mark = f"MDC_DATA_DIR={folder}/data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = dict(os.environ) | {f"MDC_{name}": value for name, value in SETTINGS.items()}
        (folder / "tmp").mkdir()
        self.environment |= {
            "PYTHONPATH": str(ROOT),
            "MDC_DATA_DIR": f"{folder}/data",
            "TMPDIR": f"{folder}/tmp",
            "MDC_SECRET": SECRET.decode(),
            "MDC_SIGNING_KEYS": dump_private_keys([new_key()]),
        }
        self.servers: list[Server] = []
        cleanup.callback(self.stop)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        self.database_url = f"sqlite:///{folder}/data/mdc.sqlite3"
        self.objects_url = f"file://{folder}/data/objects"
        if size == "large":
            self._start_stores(cleanup)
        migrate.upgrade(self.database_url)
        self.key = self.command("create-key", "chaos", "--scope", "admin").strip()
        self.api = self._serve("api", self._api_command())
        for _ in range(workers):
            self.start_worker()
        wait_until(self._is_ready, 60, "the API")

    def start_worker(self) -> Server:
        """Start a worker, besides those that run."""
        return self._serve("worker", [sys.executable, "-m", "worker"])

    def workers(self) -> list[Server]:
        """The workers that run."""
        return [server for server in self.servers if server.name == "worker"]

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").is_success
        except httpx.TransportError:
            return False

    def _start_stores(self, cleanup: ExitStack) -> None:
        user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
        data = self.folder / "postgresql"
        data.mkdir()
        if os.getuid() == 0:
            shutil.chown(data, user)
            for parent in (self.folder, *self.folder.parents[:-1]):
                if parent != Path(tempfile.gettempdir()):
                    parent.chmod(0o755)

        def program(name: str) -> str:
            return str(programs / name) if programs else name

        initialise = [program("initdb"), "-D", str(data), "-U", "mdc", "--auth=trust", "--no-sync"]
        subprocess.run(initialise, check=True, user=user, stdout=subprocess.DEVNULL, cwd=data)
        port, redis_port = free_port(), free_port()
        serve = [program("postgres"), "-D", str(data), "-p", str(port), "-k", str(data), "-h", "127.0.0.1"]
        self._serve("postgresql", serve, user)
        self._serve("redis", ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""])
        s3 = cleanup.enter_context(s3_bucket())
        self.database_url = f"postgresql+psycopg://mdc@127.0.0.1:{port}/postgres"
        self.objects_url = f"{s3.url}/chaos"
        os.environ.update(s3.environment)  # this process looks into the bucket, too
        self.environment |= s3.environment | {
            "MDC_DATABASE_URL": self.database_url,
            "MDC_BROKER_URL": f"redis://127.0.0.1:{redis_port}/0",
            "MDC_OBJECTS_URL": self.objects_url,
        }
        wait_until(self.database_answers, 60, "PostgreSQL")

    def database_answers(self) -> bool:
        """Whether the database accepts connections."""
        engine = create_engine(self.database_url)
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except Exception:  # every driver has its own
            return False
        finally:
            engine.dispose()
        return True

    def _serve(self, name: str, command: list[str], user: str | None = None) -> Server:
        folder = self.folder / "postgresql" if user else self.folder
        server = Server(
            name, command, self.environment, folder / f"{name}.log", user if os.getuid() == 0 else None
        )
        self.servers.append(server)
        return server

    def _api_command(self) -> list[str]:
        return [sys.executable, "-m", "server", "--host", "127.0.0.1", "--port", str(self.port)]

    def command(self, *arguments: str) -> str:
        """`python -m server.cli`; raises when it fails."""
        command = [sys.executable, "-m", "server.cli", *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, cwd=self.folder
        )
        return done.stdout

    def stop(self) -> None:
        """TERM, the workers first; whoever does not end is killed."""
        for server in self.workers():
            server.process.terminate()
        for server in reversed(self.servers):
            # SIGINT: PostgreSQL then does not wait for its clients.
            server.process.send_signal(signal.SIGINT if server.name == "postgresql" else signal.SIGTERM)
            try:
                server.process.wait(60)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
        self.servers.clear()

    def processes(self) -> list[str]:
        """Commands of all processes that were started with this installation's environment."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found


def wait_until(condition: Any, seconds: float, what: str) -> None:
    """Poll; raises `RuntimeError` when it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not within {seconds:g} s")
        time.sleep(0.5)
