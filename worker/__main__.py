"""`python -m worker`: one worker, which runs one job at a time. Settings come from `MDC_…` in the environment."""

from __future__ import annotations

import os
import socket
import sys
import threading

from mdc_core.errors import ConfigError
from server.jobs.reaper import Reaper
from server.jobs.wakeup import Wakeup
from server.logs import configure_logging
from server.settings import Settings
from server.store import installation
from server.store.db import Database
from server.store.objects import open_objects
from worker.celery_app import make_app
from worker.registration import Registration
from worker.supervisor import Supervisor


def main() -> None:
    """Wait for wake-ups until SIGTERM or Ctrl-C. A job that is running then is checkpointed and queued again."""
    configure_logging()
    settings = Settings()
    database = Database(settings.database_url)
    stop = threading.Event()
    objects = open_objects(settings.objects_url)
    try:
        installation.join_if_there(database, objects)
    except ConfigError as error:
        sys.exit(f"Error: {error}")
    owner = f"{socket.gethostname()}:{os.getpid()}"
    wakeup = Wakeup(settings)
    supervisor = Supervisor(settings, database, objects, wakeup, owner, stop)
    reaper = Reaper(settings, database, objects, wakeup)
    registration = Registration(settings, database, owner, stop)

    def ready() -> None:
        reaper.start()
        registration.start()

    app = make_app(settings, supervisor.drain, on_ready=ready, on_stop=stop.set)
    try:
        app.worker_main(
            ["worker", "--pool=threads", "--concurrency=1", "--loglevel=WARNING", "--without-gossip"]
        )
    finally:
        stop.set()
        reaper.stop()
        registration.join()
        wakeup.close()
        database.dispose()


if __name__ == "__main__":
    main()
