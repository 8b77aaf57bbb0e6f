"""Wake-ups reach the broker of either size, and a broker that is away costs nothing but time."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
import redis

from server.jobs.wakeup import MOST_WAITING, Wakeup
from server.settings import Settings
from tests.conftest import both_sizes
from tests.services import free_port

# The newest SQLAlchemy deprecates an option that kombu's transport uses.


def waiting(settings: Settings) -> int:
    """Messages that nobody has fetched."""
    if settings.broker_url.startswith("redis"):
        with redis.Redis.from_url(settings.broker_url) as client:
            return int(client.llen(f"{settings.broker_prefix}celery"))
    path = settings.broker_url.removeprefix("sqla+sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM kombu_message WHERE visible = 1").fetchone()[0])


@both_sizes
def test_every_wake_up_is_a_message_of_this_installation(installation: Settings) -> None:
    wakeup = Wakeup(installation)
    wakeup.prepare()
    for _ in range(2):
        wakeup.send("job_a")
    wakeup.close()
    assert waiting(installation) == 2
    if installation.broker_url.startswith("redis"):
        assert waiting(installation.model_copy(update={"broker_prefix": "mdc-test-another:"})) == 0


def test_messages_that_were_delivered_do_not_fill_the_broker_file(installation: Settings) -> None:
    wakeup = Wakeup(installation)
    wakeup.prepare()
    for _ in range(3):
        wakeup.send("job_a")
    wakeup.close()
    path = installation.broker_url.removeprefix("sqla+sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE kombu_message SET visible = 0 WHERE id < 3")  # as Celery's transport does
        connection.commit()
        wakeup.prepare()
        assert connection.execute("SELECT count(*) FROM kombu_message").fetchone() == (1,)


def test_nobody_waits_for_the_broker_and_few_hints_do(installation: Settings) -> None:
    wakeup = Wakeup(installation)
    wakeup.prepare()
    wakeup.send("job_first")
    wakeup.close()  # it is sent by now
    wakeup = Wakeup(installation)
    path = installation.broker_url.removeprefix("sqla+sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # until the end of this block no message gets through
        for number in range(5 * MOST_WAITING):
            wakeup.send(f"job_{number}")
        connection.execute("COMMIT")
    wakeup.close()
    assert 1 + MOST_WAITING <= waiting(installation) <= 2 + MOST_WAITING  # one was taken up, the rest waited
    wakeup.send("job_late")


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:{port}/0", "sqla+sqlite:////nowhere/at/all.sqlite3"])
def test_a_broker_that_is_away_is_no_error(installation: Settings, broker: str) -> None:
    settings = installation.model_copy(update={"broker_url": broker.format(port=free_port())})
    wakeup = Wakeup(settings)
    wakeup.send("job_a")
    wakeup.close()
