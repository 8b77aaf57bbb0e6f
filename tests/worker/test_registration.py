"""A worker says what it computes on for as long as it lives."""

from __future__ import annotations

import threading

from server.store import workers
from server.store.tables import Worker
from tests.worker.conftest import Stores
from worker.registration import Registration


def registered(stores: Stores) -> Worker | None:
    with stores.database.read() as session:
        return workers.largest(session)


def test_a_worker_is_known_until_it_ends(stores: Stores) -> None:
    registration = Registration(stores.settings, stores.database, "here:1", stores.stop)
    registration.start()
    worker = None
    for _ in range(6000):
        if (worker := registered(stores)) is not None:
            break
        threading.Event().wait(0.02)
    assert worker is not None
    assert worker.id == "here:1"
    assert worker.device
    assert worker.memory_bytes > 10**8
    assert min(worker.flops, worker.bandwidth, worker.start) > 0
    stores.stop.set()
    registration.join()
    assert registered(stores) is None


def test_a_worker_that_ends_at_once_does_not_measure(stores: Stores) -> None:
    stores.stop.set()
    registration = Registration(stores.settings, stores.database, "here:1", stores.stop)
    registration.start()
    registration.join()
    assert registered(stores) is None
