"""Celery carries wake-ups only. The database decides which job runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from celery import Celery, signals
from celery.worker.consumer import Consumer
from kombu.message import Message

from server.jobs.wakeup import TASK, transport_options
from server.settings import Settings

MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What kombu and Celery raise for a malformed message."""


class TolerantConsumer(Consumer):  # type: ignore[misc]
    """Drops malformed messages. Celery's own consumer would end the worker, and its job with it.

    Anybody who reaches the broker can write such a message. A lost wake-up costs only time.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Treat malformed messages as connection errors, too."""
        super().__init__(*args, **options)
        self.connection_errors: tuple[type[Exception], ...] = (*self.conninfo.connection_errors, *MALFORMED)

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Message], None]:
        """Celery's handler; a message with a readable envelope and malformed content is acknowledged and dropped."""
        handle = super().create_task_handler(*args, **options)

        def handle_or_drop(message: Message) -> None:
            try:
                handle(message)
            except MALFORMED as error:
                _log_dropped(error)
                message.ack_log_error(structlog.get_logger(), self.connection_errors)

        return handle_or_drop

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Reconnect, also after a message that the transport could not read: it is off the queue already."""
        if isinstance(exc, MALFORMED):
            _log_dropped(exc)
        super().on_connection_error_after_connected(exc)


def _log_dropped(error: Exception) -> None:
    structlog.get_logger().warning("malformed message dropped", error=repr(error)[:200])


def make_app(
    settings: Settings,
    drain: Callable[[], None],
    *,
    on_ready: Callable[[], None],
    on_stop: Callable[[], None],
) -> Celery:
    """A Celery app whose one task runs queued jobs until there are none.

    The job id in a message only says that some job waits. Lost, late and duplicate messages do no harm.
    `on_ready` is called when the worker listens. `on_stop` is called when it is asked to end, before it waits for the
    task.
    """
    broker_url = settings.broker_url
    app = Celery("mdc", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        # With late acknowledgement, Redis redelivers a message while its job is still running. SQLite's broker does
        # not; there, late acknowledgement leaves the message of a stopped worker to the next one.
        task_acks_late=broker_url.startswith("sqla"),
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=broker_url.startswith("redis"),  # no other transport supports it
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=transport_options(settings),
        worker_consumer=TolerantConsumer,
    )

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def run_job(_job_id: str) -> None:
        drain()

    # Celery keeps only weak references to receivers, hence weak=False below.
    def ready(**_: Any) -> None:
        on_ready()

    def stopping(**_: Any) -> None:
        on_stop()

    signals.worker_ready.connect(ready, weak=False)
    signals.worker_shutting_down.connect(stopping, weak=False)
    return app
