"""Commands for a service's data sets and API keys."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mdc_cli.client import DEFAULT_URL, Service
from mdc_cli.local import Json
from mdc_cli.output import print_json, print_rows, say
from mdc_cli.remote import Key, Url
from mdc_core.errors import MdcError


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (datasets, keys):
        app.command()(command)


def datasets(
    dataset: Annotated[
        str | None, typer.Argument(metavar="ID", help="Show only this data set, in full.")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the upload ID; sets made from it remain.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 100,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List the data sets that jobs can name, show one, or delete an upload."""
    service = Service(url, key)
    if delete:
        if dataset is None:
            raise MdcError("name the upload to delete: mdc datasets ID --delete")
        service.send("DELETE", f"/v1/datasets/{dataset}")
        say(f"Deleted data set {dataset}.")
        return
    if dataset is not None:
        print_json(service.call("GET", f"/v1/datasets/{dataset}"))
        return
    columns = ["data set", "name", "classes", "images", "bytes", "uploaded"]
    print_rows(service.pages("/v1/datasets", limit), as_json, columns, _dataset)


def keys(
    create: Annotated[str | None, typer.Option(metavar="NAME", help="Create a key with this name.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="Scope of the new key; repeat for several. [default: subsets:read]"),
    ] = None,
    revoke: Annotated[str | None, typer.Option(metavar="ID", help="Revoke this key.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 100,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List API keys, create one, or revoke one; needs an admin key."""
    service = Service(url, key)
    if create is not None and revoke is not None:
        raise MdcError("create a key or revoke one: give --create or --revoke, not both")
    if create is not None:
        request = {"name": create, "scopes": scope or ["subsets:read"]}
        created = service.call("POST", "/v1/keys", json=request)
        print_json(created) if as_json else say(created["key"])
        return
    if revoke is not None:
        service.send("DELETE", f"/v1/keys/{revoke}")
        say(f"Revoked key {revoke}.")
        return
    columns = ["key", "name", "scopes", "last used", "state"]
    print_rows(service.pages("/v1/keys", limit), as_json, columns, _key)


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
        else "active"
    )
    used = (one["last_used_at"] or "never")[:16]
    return [one["id"], one["name"], " ".join(one["scopes"]), used, state]
