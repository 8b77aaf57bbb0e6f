"""The OpenAPI document is the contract: complete, without dangling references, with stable names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from mdc_core.delivery.budget import Budget, Plan
from server.app import create_app
from server.settings import Settings

OPERATIONS = {
    "cancelJob",
    "createKey",
    "deleteDataset",
    "getDataset",
    "getJob",
    "getKeyset",
    "getManifest",
    "getPreview",
    "getRank",
    "getSet",
    "getSetSubset",
    "getSubset",
    "headRank",
    "headSetSubset",
    "headSubset",
    "listDatasets",
    "listJobEvents",
    "listJobs",
    "listKeys",
    "listSets",
    "makePlan",
    "revokeKey",
    "streamJobEvents",
    "submitJob",
    "uploadDataset",
    "withdrawSet",
}

OPEN = {"getKeyset"}
"""Operations that need no API key."""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("data")))
    found: dict[str, Any] = app.openapi()
    return found


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for methods in document["paths"].values() for operation in methods.values()]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_operation_ids_are_stable(document: dict[str, Any]) -> None:
    found = [operation["operationId"] for operation in operations(document)]
    assert len(found) == len(set(found))
    assert set(found) == OPERATIONS


def test_every_error_response_is_a_problem(document: dict[str, Any]) -> None:
    for operation in operations(document):
        errors = {status: told for status, told in operation["responses"].items() if status >= "400"}
        asks = set() if operation["operationId"] in OPEN else {"401", "403", "422", "429"}
        everywhere = {"400", "500", "503"} | asks
        assert errors.keys() >= everywhere, operation["operationId"]
        for told in errors.values():
            assert list(told["content"]) == ["application/problem+json"]
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    found = set(references(document))
    assert found
    assert {name.rpartition("/")[2] for name in found} <= set(schemas)


def test_a_partial_configuration_is_allowed(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["JobRequest"]["properties"]["condense"]["$ref"].endswith("/CondenseConfig")
    assert "required" not in schemas["CondenseConfig"]
    assert "required" not in schemas["EvaluateConfig"]


def test_the_document_is_the_same_twice(tmp_path: Path, document: dict[str, Any]) -> None:
    assert create_app(Settings(data_dir=tmp_path)).openapi() == document


def test_the_committed_document_is_this_one(document: dict[str, Any]) -> None:
    committed = json.loads((Path(__file__).resolve().parents[2] / "docs/openapi.json").read_text())
    assert committed == json.loads(json.dumps(document)), (
        "the API has changed: see whether clients can bear it, then run "
        "python -m server.cli openapi > docs/openapi.json"
    )


def test_a_plan_is_asked_for_with_the_fields_of_a_budget(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/sets/{name}/plans"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["schema"]["properties"]) == {field.name for field in fields(Budget)}
    assert {field.name for field in fields(Plan)} <= set(
        document["components"]["schemas"]["PlanResponse"]["properties"]
    )
