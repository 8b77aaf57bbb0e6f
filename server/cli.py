"""Operator commands, `python -m server.cli …`: database, API keys, signing keys, objects, OpenAPI document."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from obstore.exceptions import BaseError
from pydantic import SecretStr, ValidationError
from sqlalchemy.exc import DBAPIError

from mdc_core.delivery.signing import dump_private_keys, new_key
from mdc_core.system.command_group import CommandGroup
from server.access.callers import SCOPES
from server.access.tokens import create_key
from server.schemas.keys import LONGEST_KEY, KeyResponse
from server.settings import MIN_SECRET, Settings, wrong_settings
from server.store import installation, keys
from server.store import migrate as migrations
from server.store.db import Database
from server.store.objects import open_objects
from server.store.sweep import check_share, restore
from server.store.sweep import sweep as swept
from server.store.tables import utcnow
from server.store.verification import verify_objects


class _Commands(CommandGroup):
    """Also explains errors of the settings, the database and the object store."""

    def reason(self, error: Exception) -> str | None:
        """See `CommandGroup.reason`."""
        if isinstance(error, ValidationError):
            return wrong_settings(error)
        if isinstance(error, DBAPIError):
            return (
                f"the database: {str(error.orig).strip()}\nCheck MDC_DATABASE_URL or MDC_DATA_DIR. If the schema is "
                "out of date, run `python -m server.cli migrate`."
            )
        if isinstance(error, BaseError):
            return f"the object store (check MDC_OBJECTS_URL): {error}"
        return super().reason(error)


app = typer.Typer(
    cls=_Commands, help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.command()
def migrate(revision: str = "head") -> None:
    """Migrate the database to a revision. Run this before you start a new release."""
    migrations.upgrade(Settings().database_url, revision)


@app.command("create-key")
def create(
    name: str,
    scope: Annotated[list[str], typer.Option(help=f"One of {', '.join(SCOPES)}; may be repeated.")],
    days: Annotated[
        int | None,
        typer.Option(min=1, max=LONGEST_KEY.days, help="Days until it expires. [default: never]"),
    ] = None,
) -> None:
    """Create an API key and print it. Outside embedded mode, create the first admin key with this."""
    if unknown := [name for name in scope if name not in SCOPES]:
        raise typer.BadParameter(f"there is no scope {unknown[0]!r}: choose from {', '.join(SCOPES)}")
    settings = Settings()
    db = Database(settings.database_url)
    try:
        secret_key = settings.secret_key()
        with db.begin() as session:
            expires_at = None if days is None else utcnow() + timedelta(days=days)
            _, token = create_key(
                session, secret_key, name=name, scopes=sorted(set(scope)), expires_at=expires_at
            )
    finally:
        db.dispose()
    typer.echo(token)


@app.command("list-keys")
def show() -> None:
    """Print all API keys without their secrets, one JSON object per line."""
    db = Database(Settings().database_url)
    try:
        with db.read() as session:
            after = None
            while page := keys.page(session, after=after, limit=100):
                for key in page:
                    typer.echo(KeyResponse.of(key).model_dump_json())
                after = page[-1].id
    finally:
        db.dispose()


@app.command("revoke-key")
def revoke(key_id: str) -> None:
    """Revoke an API key, even the last admin key; `create-key` creates another."""
    db = Database(Settings().database_url)
    try:
        with db.begin() as session:
            if keys.get(session, key_id) is None:
                raise typer.BadParameter(f"there is no key {key_id!r}: see list-keys")
            keys.revoke(session, key_id)
    finally:
        db.dispose()


@app.command()
def openapi() -> None:
    """Print the OpenAPI document (docs/openapi.json)."""
    from server.app import create_app  # only here: the other commands need no API

    with TemporaryDirectory() as folder:
        settings = Settings(
            data_dir=Path(folder),
            database_url=f"sqlite:///{folder}/none.sqlite3",
            objects_url="memory://",
            secret=SecretStr("x" * MIN_SECRET),
            signing_keys=SecretStr(dump_private_keys([new_key()])),
        )
        document = create_app(settings).openapi()
    typer.echo(json.dumps(document, indent=1, sort_keys=True))


@app.command("create-signing-key")
def create_signing_key(
    rotate: Annotated[
        bool, typer.Option(help="Append it to the keys in use: published, but not signing yet.")
    ] = False,
) -> None:
    """Create a signing key for manifests, and print the private key set for MDC_SIGNING_KEYS. Keep it secret."""
    typer.echo(dump_private_keys([*(Settings().manifest_keys() if rotate else ()), new_key()]))


@app.command("promote-signing-key")
def promote_signing_key() -> None:
    """Print the private key set with its last key first, so that it signs. Wait until devices have seen that key."""
    *former, last = Settings().manifest_keys()
    if not former:
        raise typer.BadParameter("there is only one key: create-signing-key --rotate adds the next")
    typer.echo(dump_private_keys([last, *former]))


@app.command()
def sweep(
    dry_run: Annotated[bool, typer.Option(help="Print what would be deleted, and delete nothing.")] = False,
    allow_most: Annotated[
        bool, typer.Option(help="Allow deleting more than half of all uploads and sets.")
    ] = False,
) -> None:
    """Delete unreferenced objects older than MDC_SWEEP_AGE_SECONDS, and print them.

    API and workers do this every few hours. Within a week, `restore-swept` restores them.
    """
    settings = Settings()
    db = Database(settings.database_url)
    count = total = 0
    try:
        objects = open_objects(settings.objects_url)
        installation.join(db, objects)
        if not dry_run and not allow_most:
            check_share(db, objects, settings.sweep_age_seconds)
        for stored in swept(db, objects, settings.sweep_age_seconds, dry_run=dry_run):
            typer.echo(f"{stored.key} {stored.size}")
            count, total = count + 1, total + stored.size
    finally:
        db.dispose()
    typer.echo(f"{count} objects, {total} bytes" + (" would be deleted" if dry_run else " deleted"), err=True)


@app.command("restore-swept")
def restore_swept(
    prefix: Annotated[str, typer.Argument(help="Only restore keys with this prefix.")] = "",
) -> None:
    """Restore objects that were swept within the last week, and print their keys."""
    for key in restore(open_objects(Settings().objects_url), prefix):
        typer.echo(key)


@app.command("verify-objects")
def verify() -> None:
    """Verify every object of uploads and sets, repair what can be repaired, and print all faults.

    Missing and damaged objects are restored from the sweep's trash; a set's object also from its master. To repair any
    other upload, upload the same bytes again. Exits with status 1 if a fault remains.
    """
    settings = Settings()
    db = Database(settings.database_url)
    left = 0
    try:
        for fault in verify_objects(db, open_objects(settings.objects_url)):
            typer.echo(
                f"{fault.key} {fault.what}, of {fault.of}: {'repaired' if fault.repaired else 'NOT repaired'}"
            )
            left += not fault.repaired
    finally:
        db.dispose()
    if left:
        raise typer.Exit(1)


@app.command("adopt-objects")
def adopt_objects() -> None:
    """Assign the object store to this database, even if it belongs to another or holds unknown objects."""
    settings = Settings()
    db = Database(settings.database_url)
    try:
        typer.echo(installation.adopt(db, open_objects(settings.objects_url)))
    finally:
        db.dispose()


if __name__ == "__main__":
    app()
