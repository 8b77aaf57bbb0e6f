"""Registration: publishes the worker's device and speed for as long as the worker lives."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from server.settings import Settings
from server.store import workers
from server.store.db import Database
from worker.supervisor import computing_environment


class Registration:
    """A thread that runs the benchmark once, then renews the worker's row until `stop` is set."""

    def __init__(self, settings: Settings, database: Database, worker_id: str, stop: threading.Event) -> None:
        """`worker_id` is the owner that the worker's leases name."""
        self._settings = settings
        self._database = database
        self._id = worker_id
        self._stop = stop
        self._thread = threading.Thread(target=self._run, name="registration")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread to end, if it was started."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        machine = self._measure()
        if machine is None:
            return
        structlog.get_logger().info("worker measured", worker=self._id, **machine)
        while not self._stop.is_set():
            try:
                self._beat(machine)
            except SQLAlchemyError as error:
                structlog.get_logger().warning("the database does not answer", error=repr(error))
            self._stop.wait(self._settings.lease_renew_seconds)
        try:
            with self._database.begin() as session:
                workers.leave(session, self._id)
        except SQLAlchemyError as error:  # the row expires by itself
            structlog.get_logger().warning("the worker could not be signed off", error=repr(error))

    def _measure(self) -> dict[str, Any] | None:
        """What `worker.machine` prints; None if it fails, or if the worker stops first."""
        command = [sys.executable, "-m", "worker.machine"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, env=computing_environment(), text=True
        ) as child:
            while child.poll() is None:
                if self._stop.wait(0.2):
                    child.kill()
                    return None
            assert child.stdout is not None
            output = child.stdout.read()
        if child.returncode:
            # The worker runs jobs all the same. Submissions are just not checked against its memory.
            structlog.get_logger().warning("the worker could not be measured", status=child.returncode)
            return None
        machine: dict[str, Any] = json.loads(output)
        return machine

    def _beat(self, machine: dict[str, Any]) -> None:
        """Renew the row. Add it the first time, and again if it expired while the database was away."""
        seconds = self._settings.lease_seconds
        with self._database.begin() as session:
            if not workers.beat(session, self._id, seconds):
                workers.register(session, self._id, host=socket.gethostname(), seconds=seconds, **machine)
