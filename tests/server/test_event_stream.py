"""A job's events as a list and as a stream: none missing, none twice, nothing kept for who is slow or gone."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from server.jobs.event_stream import Watchers
from server.services import CONCURRENT_REQUESTS
from server.store import jobs, sets
from server.store.db import Database
from server.store.states import JobState
from server.web.problems import Problem
from tests.server.conftest import Api, sqlite_only
from tests.server.test_api_jobs import submit
from tests.server.test_problems import check
from tests.services import free_port, process

pytestmark = pytest.mark.process

FAST = 0.01


@dataclass
class Message:
    """One server-sent event."""

    event: str
    id: int | None
    data: dict[str, Any]


def messages(text: str) -> list[Message]:
    """What a browser's EventSource would hand out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            number = int(fields["id"]) if "id" in fields else None
            found.append(Message(fields["event"], number, json.loads(fields["data"])))
    return found


async def following(frames: AsyncIterator[bytes]) -> Message:
    """The next message, comments and pauses left out."""
    while True:
        found = messages((await anext(frames)).decode())
        if found:
            return found[0]


def queued(db: Database, owner: str) -> str:
    with db.begin() as session:
        assert sets.claim_name(session, "toy", owner)
        job = jobs.submit(session, owner_id=owner, dataset="digits", name="toy", condense={}, evaluate={})
        return job.id


def claim(db: Database, job_id: str) -> None:
    with db.begin() as session:
        assert jobs.claim(session, job_id, "worker", 90) is not None


def report(db: Database, job_id: str, step: int) -> None:
    with db.begin() as session:
        assert jobs.report(session, job_id, 1, {"phase": "condensing", "step": step, "total": 9})


def fail(db: Database, job_id: str) -> None:
    with db.begin() as session:
        assert jobs.fail(session, job_id, 1, "bad-dataset", "class 3 is empty")


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def ended_job(api: Api) -> tuple[str, list[str]]:
    """A job that was interrupted once, and the states it has had."""
    job_id: str = submit(api)["id"]
    with api.services.db.begin() as session:
        jobs.claim(session, job_id, "first", 90)
        jobs.requeue(session, job_id, 1, "its worker\nvanished")
        jobs.claim(session, job_id, "second", 90)
        jobs.fail(session, job_id, 2, "bad-dataset", "class 3 is empty")
    return job_id, ["queued", "running", "queued", "running", "failed"]


def test_events_are_listed_page_by_page_oldest_first(api: Api) -> None:
    job_id, states = ended_job(api)
    ended_job(api)  # others' events lie in between
    url = f"/v1/jobs/{job_id}/events"
    seen: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = api.client.get(url, params=query, headers=api.admin).json()
        seen += page["data"]
        if not page["has_more"]:
            break
        query["after"] = page["next_cursor"]
    assert [row["state"] for row in seen] == states
    assert [row["attempt"] for row in seen] == [0, 1, 1, 2, 2]
    assert seen[2]["detail"] == "its worker\nvanished"
    assert seen == sorted(seen, key=lambda row: row["id"])
    other = api.client.get("/v1/sets", headers=api.admin).json()["next_cursor"]
    assert other is None
    wrong = api.client.get(url, params={"after": "am9i"}, headers=api.admin)
    assert check(wrong, 422, "invalid-request")["errors"][0]["field"] == "query.after"


def test_the_stream_of_an_ended_job_ends_and_resumes_after_any_event(api: Api) -> None:
    job_id, states = ended_job(api)
    url = f"/v1/jobs/{job_id}/events/stream"
    answer = api.client.get(url, headers=api.admin)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Cache-Control"] == "no-store"
    assert "retry: " in answer.text
    whole = messages(answer.text)
    assert [message.data["state"] for message in whole] == states
    assert {message.event for message in whole} == {"state"}
    assert [message.id for message in whole] == [message.data["id"] for message in whole]
    for index, message in enumerate(whole):
        again = api.client.get(url, headers={**api.admin, "Last-Event-ID": str(message.id)})
        assert again.status_code == (204 if message is whole[-1] else 200)
        assert messages(again.text) == whole[index + 1 :]


@sqlite_only
def test_strangers_and_nonsense_get_no_stream(api: Api) -> None:
    job_id = submit(api, api.key("jobs:write"))["id"]
    for path in ("events", "events/stream"):
        check(api.client.get(f"/v1/jobs/{job_id}/{path}", headers=api.key("jobs:read")), 404, "not-found")
        check(api.client.get(f"/v1/jobs/job_none/{path}", headers=api.admin), 404, "not-found")
    for nonsense in ("x", "-1", "1" * 19):
        headers = {**api.admin, "Last-Event-ID": nonsense}
        answer = api.client.get(f"/v1/jobs/{job_id}/events/stream", headers=headers)
        assert check(answer, 422, "invalid-request")["errors"][0]["field"] == "header.last-event-id"


def test_changes_and_progress_arrive_while_they_happen(db: Database, owner: str) -> None:
    job_id = queued(db, owner)

    async def watch() -> None:
        watchers = Watchers(db, poll=FAST)
        with watchers.watching(job_id, "key") as job:
            frames = watchers.frames(job, 0)
            assert (await following(frames)).data["state"] == "queued"
            assert (await following(frames)).data["phase"] == "queued"
            claim(db, job_id)
            assert (await following(frames)).data["detail"] == "claimed by worker"
            assert (await following(frames)).data["phase"] == "loading"
            report(db, job_id, 3)
            message = await following(frames)
            assert (message.event, message.id, message.data["step"]) == ("progress", None, 3)
            fail(db, job_id)
            assert (await following(frames)).data["state"] == "failed"
            with pytest.raises(StopAsyncIteration):
                await following(frames)
        assert watchers.count == 0

    run(watch)


@sqlite_only
def test_who_is_slow_finds_the_newest_progress_and_every_event(db: Database, owner: str) -> None:
    job_id = queued(db, owner)
    claim(db, job_id)

    async def watch() -> None:
        watchers = Watchers(db, poll=FAST)
        with watchers.watching(job_id, "key") as job, watchers.watching(job_id, "key"):
            slow, quick = watchers.frames(job, 0), watchers.frames(job, 0)
            for frames in (slow, quick):
                assert [(await following(frames)).event for _ in range(3)] == ["state", "state", "progress"]
            for step in range(5):
                report(db, job_id, step)
                assert (await following(quick)).data["step"] == step
            assert (await following(slow)).data["step"] == 4
            fail(db, job_id)
            assert (await following(quick)).data == (await following(slow)).data

    run(watch)


def test_many_watchers_cost_two_queries(db: Database, owner: str) -> None:
    ids = []
    with db.begin() as session:
        sets.claim_name(session, "toy", owner)
        for _ in range(30):
            row = jobs.submit(session, owner_id=owner, dataset="digits", name="toy", condense={}, evaluate={})
            ids.append(row.id)
    statements: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("SELECT"):
            statements.append(statement)

    async def watch() -> None:
        watchers = Watchers(db, poll=60)
        with ExitStack() as stack:
            streams = [
                watchers.frames(stack.enter_context(watchers.watching(job_id, "key")), 0)
                for job_id in ids * 3
            ]
            assert watchers.count == 90
            first = await asyncio.gather(*map(following, streams))
            assert [message.data["state"] for message in first] == ["queued"] * 90
        assert watchers.count == 0

    event.listen(db.engine, "before_cursor_execute", record)
    run(watch)
    assert len(statements) == 2


@sqlite_only
def test_a_client_that_goes_away_is_released(db: Database, owner: str) -> None:
    job_id = queued(db, owner)

    async def watch() -> None:
        watchers = Watchers(db, poll=FAST)
        gone, sent = asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if b"queued" in message.get("body", b""):
                assert watchers.count == 1
                gone.set()
                await sent.wait()  # a connection whose buffer is full

        scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
        await watchers.stream(job_id, "key", 0)(scope, receive, send)
        assert watchers.count == 0

    run(watch)


@sqlite_only
def test_a_silent_stream_has_a_heart_beat_and_an_end(
    db: Database, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = queued(db, owner)
    monkeypatch.setattr("server.jobs.event_stream.HEARTBEAT_SECONDS", FAST)

    async def watch() -> None:
        watchers = Watchers(db, poll=60, longest=20 * FAST)
        with watchers.watching(job_id, "key") as job:
            sent = [frame async for frame in watchers.frames(job, 0)]
        assert sent[-1].startswith(b":")
        assert [message.event for message in messages(b"".join(sent).decode())] == ["state", "progress"]

    run(watch)


@sqlite_only
def test_a_process_takes_only_so_many_streams(api: Api) -> None:
    job_id = submit(api)["id"]
    watchers = api.services.watchers
    watchers.close()
    answer = api.client.get(f"/v1/jobs/{job_id}/events/stream", headers=api.admin)
    check(answer, 429, "too-many-streams")
    assert int(answer.headers["Retry-After"]) > 0
    assert watchers.count == 0


@sqlite_only
def test_a_key_takes_only_so_many_of_them(db: Database, owner: str) -> None:
    """However many are asked for at once; other keys are not concerned."""

    async def watch() -> None:
        watchers = Watchers(db, poll=60, most=4, most_of_key=3)
        with ExitStack() as stack:
            for job_id in ("a", "a", "b"):
                stack.enter_context(watchers.watching(job_id, "key"))
            with pytest.raises(Problem, match="the API key key has 3 streams open, the limit per key"):
                stack.enter_context(watchers.watching("c", "key"))
            stack.enter_context(watchers.watching("c", "other"))
            with pytest.raises(Problem, match="this server has too many"):
                stack.enter_context(watchers.watching("c", "third"))
            assert watchers.count == 4
        assert watchers.count == 0

    run(watch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_hold_up_neither_requests_nor_the_end_of_the_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("MDC_DATA_DIR", str(tmp_path))
    port = free_port()
    command = [sys.executable, "-m", "server", "--port", str(port)]

    def is_ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success
        except httpx.TransportError:
            return False

    with process(command, is_ready) as serving:
        headers = {"Authorization": f"Bearer {(tmp_path / 'admin.key').read_text().strip()}"}
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client,
            ExitStack() as others,
        ):
            job_id = client.post("/v1/jobs", json={"dataset": "digits"}).json()["id"]
            for _ in range(CONCURRENT_REQUESTS):
                others.enter_context(client.stream("GET", f"/v1/jobs/{job_id}/events/stream"))
            with client.stream("GET", f"/v1/jobs/{job_id}/events/stream") as stream:
                assert client.get(f"/v1/jobs/{job_id}").is_success
                pieces = stream.iter_text()
                text = next(pieces)
                while not messages(text):
                    text += next(pieces)
                deadline = threading.Timer(60, serving.kill)
                deadline.start()
                serving.send_signal(number)
                text += "".join(pieces)  # a stream that is cut off would raise
        assert messages(text)[0].data["state"] == JobState.QUEUED
        assert serving.wait() != -signal.SIGKILL
        deadline.cancel()
