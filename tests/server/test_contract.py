"""The API under requests that are generated from its own description: it answers nothing that is not described."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, settings
from pydantic import SecretStr
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mdc_core.delivery.signing import dump_private_keys
from server.access.tokens import create_key
from server.app import create_app
from server.jobs.event_stream import Watchers
from server.services import Services
from server.settings import Settings
from tests.conftest import SIGNING_KEY
from tests.server import schemathesis_hooks  # noqa: F401
from tests.server.toyset import publish
from tests.services import free_port

pytestmark = pytest.mark.process

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/openapi.json"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
schema = schemathesis.openapi.from_path(DOCUMENT)
schema.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
REPEATABLE = settings(
    max_examples=12,
    stateful_step_count=6,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@dataclass
class Live:
    """A real server, and the key of an admin."""

    url: str
    headers: dict[str, str]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("contract")
    chosen = Settings(
        data_dir=folder,
        secret=SecretStr("s" * 32),
        signing_keys=SecretStr(dump_private_keys([SIGNING_KEY])),
        refusal_rate="",
        key_rate="",
        key_jobs=50,
    )
    app = create_app(chosen)
    made: Services = app.state.services
    # No request waits for a job that no worker takes.
    app.state.services = services = replace(made, watchers=Watchers(made.db, longest=0.05))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        with services.db.begin() as session:
            row, token = create_key(session, services.secret_key, name="fuzz", scopes=["admin"])
        publish(services, row.id, "toy", 1)
        yield Live(f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {token}"})
    finally:
        server.should_exit = True
        thread.join()


@schema.parametrize()
@REPEATABLE
def test_every_answer_is_one_that_is_described(case: Any, live: Live) -> None:
    case.call_and_validate(base_url=live.url, headers=live.headers, checks=CHECKS)


def test_so_are_the_answers_along_the_links(live: Live) -> None:
    class Walk(schema.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"base_url": live.url, "headers": live.headers}

        def validate_response(self, response: Any, case: Any, *_rest: Any, **_more: Any) -> None:
            case.validate_response(response, checks=CHECKS)

    Walk.run(settings=REPEATABLE)
