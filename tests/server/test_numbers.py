"""Odd numbers and texts in every field, query, path and header: an answer is below 500, and real JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from mdc_core.config.settings import CondenseConfig, DataFacts, EvaluateConfig, NetworkConfig
from mdc_core.delivery.budget import Budget
from mdc_core.errors import ConfigError
from server.settings import Settings
from server.store.tables import Job
from tests.server.conftest import Api, serving
from tests.server.toyset import publish

pytestmark = pytest.mark.slow

LONG = ["1" + "0" * 400, "9" * 4300, "9" * 5000, "0." + "0" * 400 + "1"]
ODD = [
    *(
        "0",
        "-1",
        "1.5",
        "1",
        '""',
        "1e-320",
        "-5e-324",
        "1e-400",
        "1e24",
        "1e300",
        "1.8e308",
        "1e309",
        "-1e999",
    ),
    *("NaN", "Infinity", "-Infinity", str(2**31), str(2**53 + 1), str(2**63), str(2**64), "1" * 30, *LONG),
]
"""As JSON has them, or as Python takes them for JSON."""
TEXT = [
    *ODD,
    "-0",
    "007",
    "1_000",
    "+1",
    " 1",
    "1e",
    "0x10",
    "null",
    "inf",
    "nan",
    "٣",
    "²",
    "-" + LONG[2],
    "0" * 5000,
]
NUMBERS = st.sampled_from(TEXT) | st.floats().map(repr) | st.integers().map(str)
REPEATABLE = settings(
    max_examples=len(TEXT),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("numbers")
    chosen = Settings(data_dir=folder, refusal_rate="", key_rate="", key_jobs=100_000)
    with serving(chosen) as api:
        owner = api.admin["Authorization"].split("_")[1]
        publish(api.services, owner, "toy", 1)
        api.client.get("/v1/sets/toy@1/subsets/4", headers=api.admin)  # into memory, for the fast path
        yield api


def sound(answer: Any) -> None:
    """Below 500, and what says that it is JSON is, without infinities."""
    assert answer.status_code < 500, answer.text[:500]
    if "json" in answer.headers.get("Content-Type", ""):
        json.loads(answer.content, parse_constant=pytest.fail)


@pytest.mark.parametrize("field", [field.name for field in fields(Budget)])
def test_budgets(served: Api, field: str) -> None:
    rates = {name: "1" for name in ("flops", "bandwidth_bps", "watts", "joules", "seconds") if name != field}
    for number in TEXT:
        for beside in (rates, {}):
            query = "&".join(f"{name}={quote(value)}" for name, value in {field: number, **beside}.items())
            sound(served.client.get(f"/v1/sets/toy@1/subsets/2?{query}", headers=served.admin))
        sound(served.client.get(f"/subsets/auto?set=toy&{query}", headers=served.admin))
    for number in ODD:
        body = ", ".join(f'"{name}": {value}' for name, value in {field: number, **rates}.items())
        sound(post(served, "/v1/sets/toy/plans", f"{{{body}}}"))


def post(served: Api, url: str, body: str) -> Any:
    return served.client.post(
        url, content=body.encode(), headers={**served.admin, "Content-Type": "application/json"}
    )


JOB_FIELDS = [
    *("minutes", "image_size", "max_runtime_s", "name", "preset", "dataset", "dry_run", "condense"),
    *(f"condense.{name}" for name in CondenseConfig.model_fields),
    *(f"condense.network.{name}" for name in NetworkConfig.model_fields),
    *(f"evaluate.{name}" for name in EvaluateConfig.model_fields),
    *("condense.subset_weights.", "evaluate.sizes.", "evaluate.epoch_shares.", "condense.unknown.deeper"),
]


@pytest.mark.parametrize("field", JOB_FIELDS)
def test_jobs(served: Api, field: str) -> None:
    for index, number in enumerate(ODD):
        value = number
        for part in reversed(field.split(".")):
            value = f'{{"{part}": {value}}}' if part else f"[{value}]"
        whole = value.removeprefix("{").removesuffix("}")
        for name, default in (("dataset", '"digits"'), ("dry_run", "true" if index % 2 else "false")):
            whole += "" if field == name else f', "{name}": {default}'
        answer = post(served, "/v1/jobs", f"{{{whole}}}")
        sound(answer)
        if answer.status_code == 202:
            sound(served.client.get("/v1/jobs?limit=1", headers=served.admin))


DATES = [
    "9999-12-31T23:59:59-10:00",
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00+10:00",
    "2100-01-01T00:00:00+23:59",
    "2262-04-12T00:00:00Z",
]


@given(date=st.sampled_from(DATES).map(json.dumps) | NUMBERS)
@REPEATABLE
def test_dates(served: Api, date: str) -> None:
    sound(post(served, "/v1/keys", f'{{"name": "a", "scopes": ["jobs:read"], "expires_at": {date}}}'))
    sound(served.client.get("/v1/keys?limit=100", headers=served.admin))


URLS = [
    "/v1/jobs?limit={}",
    "/v1/jobs?after={}",
    "/v1/jobs/{}",
    "/v1/jobs/{}/events?limit={}",
    "/v1/sets?limit={}&after={}",
    "/v1/sets/toy@{}",
    "/v1/sets/toy@{}/manifest",
    "/v1/sets/toy@1/subsets/{}",
    "/v1/sets/toy@1/ranks/{}",
    "/subsets/{}?set=toy@1",
    "/subsets/1?set=toy@{}",
    "/v1/datasets?limit={}",
    "/v1/keys?limit={}",
]


@pytest.mark.parametrize("url", URLS)
@given(number=NUMBERS)
@REPEATABLE
def test_paths_and_queries(served: Api, url: str, number: str) -> None:
    sound(served.client.get(url.replace("{}", quote(number)), headers=served.admin))


@pytest.mark.parametrize(
    "url", ["/v1/sets/toy@1/subsets/3", "/v1/sets/toy/subsets/3", "/v1/sets/toy@1/ranks/1"]
)
@given(form=st.sampled_from(["bytes={}-", "bytes=-{}", "bytes=0-{}", "bytes={0}-{0}", "{}"]), number=NUMBERS)
@REPEATABLE
def test_ranges(served: Api, url: str, form: str, number: str) -> None:
    text = form.format(number).encode("latin-1", "replace")
    for more in ({}, {"If-Range": text}, {"If-None-Match": text}, {"If-Match": text}):
        sound(served.client.get(url, headers={**served.admin, "Range": text, **more}))


HEADERS = [
    "Last-Event-ID",
    "Idempotency-Key",
    "Accept",
    "Content-Type",
    "Authorization",
    "X-Request-ID",
    "Origin",
]


@pytest.mark.parametrize("header", HEADERS)
@given(text=NUMBERS | st.text(st.characters(max_codepoint=255, exclude_characters="\0\r\n")))
@REPEATABLE
def test_headers(served: Api, header: str, text: str) -> None:
    value = text.strip().encode("latin-1", "replace")
    headers = {**served.admin, "Content-Type": "application/json", header: value}
    for url in ("/v1/sets/toy@1/subsets/1", "/v1/sets/toy/manifest", "/v1/jobs/unknown/events/stream"):
        sound(served.client.get(url, headers=headers))
    body = json.dumps({"dataset": "digits", "dry_run": True}).encode()
    sound(served.client.post("/v1/jobs", content=body, headers=headers))


TEXTS = st.text(max_size=40) | st.sampled_from(["\0", "\ud800", "a\ud800", "😀", "x" * 5000, "@", "{}", "%s"])


@pytest.mark.parametrize("field", [*JOB_FIELDS, "{}", "condense.{}", "evaluate.{}", "condense.network.{}"])
@example(text="\ud800", value=None)
@given(text=TEXTS, value=st.none() | TEXTS)
@settings(REPEATABLE, max_examples=8)
def test_texts_in_jobs(served: Api, field: str, text: str, value: str | None) -> None:
    inner: Any = text if value is None else value
    for part in reversed(field.split(".")):
        inner = {text if part == "{}" else part: inner}
    sound(post(served, "/v1/jobs", json.dumps({"dataset": "digits", "dry_run": True, **inner})))


@example(text="\ud800")
@given(text=TEXTS)
@settings(REPEATABLE, max_examples=50)
def test_texts_elsewhere(served: Api, text: str) -> None:
    bodies = [
        ("/v1/keys", {"name": text, "scopes": ["jobs:read"]}),
        ("/v1/keys", {"name": "a", "scopes": [text]}),
        ("/v1/keys", {text: 1}),
        ("/v1/sets/toy/plans", {"network": text}),
        ("/v1/sets/toy/plans", {text: 1}),
        ("/v1/sets/toy/plans", {"seconds": text}),
    ]
    for url, body in bodies:
        sound(post(served, url, json.dumps(body)))
    encoded = quote(text.encode("utf-8", "surrogatepass"))
    for url in (*URLS, "/subsets/auto?set=toy&network={}", "/subsets/auto?set=toy&{}=1", "/{}"):
        sound(served.client.get(url.replace("{}", encoded), headers=served.admin))


def test_numbers_in_bodies_of_any_depth(served: Api) -> None:
    for body in ("[" * 100_000, '{"a":' * 100_000, '{"condense": ' + "[" * 5000 + "]" * 5000 + "}"):
        for url in ("/v1/jobs", "/v1/keys", "/v1/sets/toy/plans"):
            sound(post(served, url, body))


def test_what_an_earlier_release_accepted_is_still_listed(api: Api) -> None:
    """A job that today's bounds exclude is shown as it is, beside the others."""
    job = post(api, "/v1/jobs", '{"dataset": "digits"}').json()
    with api.services.db.begin() as session:
        stored = {**job["condense"], "outer_loops": 10**300, "augment": ["flip"]}
        session.execute(update(Job).values(condense=stored))
    for url in ("/v1/jobs", f"/v1/jobs/{job['id']}"):
        answer = api.client.get(url, headers=api.admin)
        sound(answer)
        assert answer.status_code == 200
    assert answer.json()["condense"]["outer_loops"] == 10**300
    assert answer.json()["condense"]["network"] == job["condense"]["network"]
    with pytest.raises(ConfigError, match=r"\(outer_loops\): submit the job again"):
        CondenseConfig.stored(stored)


def test_every_number_of_a_configuration_is_bounded() -> None:
    """Whatever a caller writes, arithmetic with it overflows nowhere."""
    for kind in (CondenseConfig, EvaluateConfig, NetworkConfig, DataFacts):
        for name, schema in kind.model_json_schema()["properties"].items():
            for part in [schema, *schema.get("anyOf", []), schema.get("items", {})]:
                if part.get("type") in ("integer", "number"):
                    assert {"minimum", "exclusiveMinimum"} & part.keys(), (kind, name)
                    assert {"maximum", "exclusiveMaximum"} & part.keys(), (kind, name)
                if part.get("type") == "array":
                    assert "maxItems" in part or "enum" in part["items"] or name == "classes", (kind, name)
