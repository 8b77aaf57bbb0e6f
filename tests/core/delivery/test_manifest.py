"""The manifest: what is built is read back, what is missing or impossible is named."""

import copy
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from mdc_core.delivery import rankmajor
from mdc_core.delivery.cost import Cost
from mdc_core.delivery.manifest import Accuracy, build_manifest, parse_manifest
from mdc_core.errors import FormatError

INFO = rankmajor.SetInfo(2, 2, ("a", "b"), (0.5,), (0.25,), 8, 1)
DIGESTS = rankmajor.digests(rankmajor.pack(np.zeros(INFO.tile_shape(2), np.uint8), INFO), INFO)
COST = Cost(parameters=10, activation_bytes=20, flops_per_image=30.5)
ROW = {
    "network": "convnet",
    "epochs": 30,
    "k": 1,
    "mdc_mean": 0.75,
    "mdc_std": 0.01,
    "random_mean": None,
    "random_std": None,
    "repeats": 3,
}
BASELINES = {"random_mean": 0.5, "random_std": 0, "shrunk_mean": 0.25, "shrunk_std": 0.5}


def document(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "name": "digits",
        "version": 1,
        "created": "2030-01-31T12:00:00Z",
        "expires": None,
        "info": INFO,
        "digests": DIGESTS,
        "object_url": "/v1/objects/1",
        "network": {"name": "convnet", "depth": 2},
        "recipe": {"epochs": 30},
        "accuracy": [ROW, {**ROW, "k": 2, **BASELINES}],
        "cost": {"convnet": COST.to_dict()},
    }
    return build_manifest(**{**given, **changes})


def test_what_is_built_is_read_back_from_json() -> None:
    manifest = parse_manifest(json.loads(json.dumps(document(expires="2031-01-31T00:00:00+00:00"))))
    assert manifest.info == INFO
    assert manifest.digests == DIGESTS
    assert manifest.created == datetime(2030, 1, 31, 12, tzinfo=UTC)
    assert manifest.expires == datetime(2031, 1, 31, tzinfo=UTC)
    assert manifest.cost == {"convnet": COST}
    assert manifest.accuracy[0] == Accuracy("convnet", 30, 1, 0.75, 0.01, None, None, 3)
    assert manifest.accuracy[1].random_mean == 0.5
    assert (manifest.accuracy[1].shrunk_mean, manifest.accuracy[1].shrunk_std) == (0.25, 0.5)
    assert (manifest.name, manifest.version, manifest.object_url) == ("digits", 1, "/v1/objects/1")
    assert manifest.network["depth"] == 2
    assert manifest.recipe == {"epochs": 30}


def test_it_states_the_sizes_for_readers_of_other_languages() -> None:
    stated = document()
    assert stated["rank_bytes"] == INFO.rank_bytes
    assert stated["header_bytes"] == 4096
    assert stated["object"]["bytes"] == 4096 + 2 * INFO.rank_bytes
    assert stated["expires"] is None


def test_the_data_may_be_known_by_their_digest() -> None:
    stated = document(data_sha256="0" * 64)
    assert parse_manifest(stated).data_sha256 == stated["data_sha256"] == "0" * 64
    del stated["data_sha256"]  # of an earlier release
    assert parse_manifest(stated).data_sha256 is None


def test_costs_may_be_given_as_values() -> None:
    assert document(cost={"convnet": COST}) == document()


def test_a_field_of_a_later_release_is_ignored() -> None:
    assert parse_manifest(document() | {"motto": "small"}) == parse_manifest(document())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("manifest_version",), 2, "manifest_version is 2, but this release reads 1"),
        (("name",), 7, "name is 7"),
        (("version",), 0, "version is 0"),
        (("version",), True, "version is True"),
        (("version",), 10**4290, "version is 1000.*…: it should be a whole number from 1 to 2147483647"),
        (("ipc",), 10**4290, "ipc is 1000.*…"),
        (("factor",), 10**4290, "factor is 1000.*…"),
        (("rank_bytes",), 10**4290, "rank_bytes is 1000.*…"),
        (("object", "bytes"), 10**4290, "object.bytes is 1000.*…"),
        (("mean",), [10**4290], "mean is .1000.*…"),
        (("mean",), [True], "mean is .True"),
        (("std",), [5e-324], "std is .5e-324"),
        (("classes",), ["a", "\ud800"], "classes"),
        (
            ("recipe", "epochs"),
            10**300,
            "recipe.epochs is 1000.*…: it should be a whole number from 1 to 1000",
        ),
        (("recipe", "batch_size"), 0.5, "recipe.batch_size is 0.5"),
        (("accuracy", 0, "epochs"), 10**300, r"accuracy\[0\]\.epochs is 1000.*…"),
        (("accuracy", 0, "k"), 10**300, r"accuracy\[0\]\.k is 1000.*…"),
        (("accuracy", 0, "repeats"), 10**300, r"accuracy\[0\]\.repeats is 1000.*…"),
        (("accuracy", 0, "mdc_std"), 10**400, r"accuracy\[0\]\.mdc_std is 1000.*…"),
        (("cost", "convnet", "parameters"), 10**400, r"cost\.parameters is 1000.*…: give a number from 0 to"),
        (("cost", "convnet", "parameters"), 0.5, r"cost\.parameters is 0.5: give a whole number"),
        (("cost", "convnet", "activation_bytes"), float("inf"), r"cost\.activation_bytes is inf"),
        (("created",), "yesterday", "created is 'yesterday'"),
        (("created",), "2030-01-31T12:00:00", "created .* UTC"),
        (("expires",), 5, "expires is 5"),
        (("ipc",), 3, "object.bytes"),
        (("factor",), 9, "factor is 9"),
        (("classes",), [], "classes"),
        (("mean",), ["x"], "an impossible set"),
        (("std",), [-1.0], "std"),
        (("rank_bytes",), 1, "rank_bytes is 1"),
        (("header_bytes",), 1, "header_bytes is 1"),
        (("object", "sha256"), "0" * 63, "object.sha256"),
        (("object", "bytes"), 5, "object.bytes is 5"),
        (("object", "encoding"), "webp", "object.encoding is 'webp'"),
        (("object", "url"), None, "object.url"),
        (("rank_sha256",), ["0" * 64], "length of rank_sha256 is 1"),
        (("header_sha256", 1), "A" * 64, r"header_sha256\[1\]"),
        (("subset_sha256",), "no", "subset_sha256"),
        (("network",), [], "network"),
        (("accuracy", 0), 4, r"accuracy\[0\]"),
        (("accuracy", 1, "k"), 3, r"accuracy\[1\]\.k is 3"),
        (("accuracy", 0, "mdc_mean"), 75.0, r"accuracy\[0\]\.mdc_mean is 75\.0.*\[0, 1\]"),
        (("accuracy", 0, "mdc_mean"), float("nan"), r"mdc_mean is nan"),
        (("accuracy", 1, "random_std"), None, r"accuracy\[1\]\.random_std"),
        (("accuracy", 1, "shrunk_std"), None, r"accuracy\[1\]\.shrunk_std"),
        (("accuracy", 1, "shrunk_mean"), 2, r"accuracy\[1\]\.shrunk_mean is 2"),
        (("cost", "convnet"), {"parameters": 1}, r"cost\.convnet: a cost has no activation_bytes"),
        (("cost", "convnet", "parameters"), -1, r"cost\.convnet: cost\.parameters is -1"),
        (("cost", "convnet", "parameters"), "1", r"cost\.parameters is '1'"),
        (("cost", "convnet"), 4, r"cost\.convnet"),
    ],
)
def test_an_impossible_field_is_named(path: tuple[Any, ...], value: object, message: str) -> None:
    damaged: Any = copy.deepcopy(document())
    target = damaged
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(FormatError, match=message):
        parse_manifest(damaged)


@pytest.mark.parametrize("key", sorted(set(document()) - {"expires", "data_sha256"}))
def test_a_missing_field_is_named(key: str) -> None:
    damaged = document()
    del damaged[key]
    with pytest.raises(FormatError, match=key):
        parse_manifest(damaged)


def test_a_manifest_is_an_object() -> None:
    with pytest.raises(FormatError, match="list"):
        parse_manifest([])  # type: ignore[arg-type]


def test_nothing_is_built_that_no_reader_takes() -> None:
    with pytest.raises(FormatError, match="mdc_mean"):
        document(accuracy=[{**ROW, "mdc_mean": 75}])
