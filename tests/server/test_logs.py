"""The line that every request leaves in the log."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import structlog
from structlog.testing import LogCapture

from tests.server.conftest import Api, Published, sqlite_only
from tests.server.test_api_jobs import submit

pytestmark = pytest.mark.process


@sqlite_only
def test_a_request_is_logged_with_its_id_its_key_and_its_route(api: Api) -> None:
    job_id = submit(api)["id"]
    captured = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, captured])
    try:
        api.client.get(f"/v1/jobs/{job_id}", headers={**api.admin, "X-Request-ID": "abc"})
        api.client.get("/v1/jobs", headers={"Authorization": "Bearer mdc_a_b"})
        api.client.get("/nothing")
    finally:
        structlog.configure(processors=before)
    found, refused, lost = (line for line in captured.entries if line["event"] == "request")
    assert found["request_id"] == "abc"
    assert found["key_id"] == api.admin["Authorization"].split("_")[1]
    assert (found["method"], found["route"], found["status"]) == ("GET", "/v1/jobs/{job_id}", 200)
    assert found["seconds"] > 0
    assert "key_id" not in refused
    assert (refused["route"], refused["status"]) == ("/v1/jobs", 401)
    assert (lost["route"], lost["status"]) == (None, 404)
    secret = api.admin["Authorization"].split("_", 2)[2]
    assert secret not in repr(captured.entries)


def test_what_the_core_logs_becomes_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    code = """
import logging
import structlog
from server.logs import configure_logging
configure_logging()
structlog.contextvars.bind_contextvars(job_id="job_a")
logging.getLogger("mdc_core.anything").warning("%s went wrong", "it")
logging.getLogger("mdc_core.anything").debug("detail")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    line = json.loads(capfd.readouterr().err)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "it went wrong",
        "job_id": "job_a",
        "level": "warning",
        "logger": "mdc_core.anything",
    }


@sqlite_only
def test_an_answer_from_memory_leaves_the_same_line(
    toy: Published, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    url = "/v1/sets/toy@1/subsets/3"
    toy.get(url)
    captured = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, captured])
    capfd.readouterr()
    try:
        toy.get(url, X_Request_ID="quick")  # from memory
        toy.get(url, X_Request_ID="slow", Origin="https://example.org")
    finally:
        structlog.configure(processors=before)
    quick = json.loads(capfd.readouterr().err)
    (slow,) = captured.entries
    assert quick["request_id"] == "quick"
    assert quick.pop("level") == slow.pop("log_level") == "info"
    assert quick.pop("timestamp").endswith("Z")
    for line in (quick, slow):
        assert line.pop("seconds") >= 0
        del line["request_id"]
    assert quick == slow
