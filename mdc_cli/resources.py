"""Commands about what a service holds for its callers: uploads and API keys."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mdc_cli.client import DEFAULT_URL, Service
from mdc_cli.local import Json
from mdc_cli.output import print_json, say, table
from mdc_cli.remote import Key, Url
from mdc_core.errors import MdcError


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (datasets, keys):
        app.command()(command)


def datasets(
    dataset: Annotated[str | None, typer.Argument(metavar="ID", help="Only this one, in full.")] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the upload ID; sets that were made of it stay.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List the data sets that jobs can name, show one, or delete an upload."""
    service = Service(url, key)
    if delete:
        if dataset is None:
            raise MdcError("say which upload is to be deleted: mdc datasets ID --delete")
        service.send("DELETE", f"/v1/datasets/{dataset}")
        say(f"Data set {dataset} is deleted.")
        return
    if dataset is not None:
        print_json(service.call("GET", f"/v1/datasets/{dataset}"))
        return
    found = service.pages("/v1/datasets", limit)
    if as_json:
        print_json(found)
        return
    columns = ["data set", "name", "classes", "images", "bytes", "uploaded"]
    table("", columns, [_dataset(one) for one in found])


def keys(
    create: Annotated[str | None, typer.Option(metavar="NAME", help="Make a key for this use.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What a new key may do; may be repeated. [default: subsets:read]"),
    ] = None,
    revoke: Annotated[str | None, typer.Option(metavar="ID", help="Make this key useless.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List API keys, make one, or revoke one; takes an admin key."""
    service = Service(url, key)
    if create is not None and revoke is not None:
        raise MdcError("make a key or revoke one: give --create or --revoke, not both")
    if create is not None:
        wanted = {"name": create, "scopes": scope or ["subsets:read"]}
        made = service.call("POST", "/v1/keys", json=wanted)
        print_json(made) if as_json else say(made["key"])
        return
    if revoke is not None:
        service.send("DELETE", f"/v1/keys/{revoke}")
        say(f"Key {revoke} is revoked.")
        return
    found = service.pages("/v1/keys", limit)
    if as_json:
        print_json(found)
        return
    table("", ["key", "name", "scopes", "last used", "state"], [_key(one) for one in found])


def _dataset(one: dict[str, Any]) -> list[str]:
    facts = one["facts"]
    images = "" if facts["images"] is None else str(facts["images"])
    size = "" if one["bytes"] is None else str(one["bytes"])
    return [one["id"], one["name"], str(len(facts["classes"])), images, size, (one["created_at"] or "")[:16]]


def _key(one: dict[str, Any]) -> list[str]:
    state = (
        "revoked"
        if one["revoked_at"]
        else f"until {one['expires_at'][:16]}"
        if one["expires_at"]
        else "works"
    )
    used = (one["last_used_at"] or "never")[:16]
    return [one["id"], one["name"], " ".join(one["scopes"]), used, state]
