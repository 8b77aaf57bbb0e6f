"""Operator's commands, `python -m server.cli …`: the database, API keys, signing keys, the OpenAPI document."""

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

from mdc_core.command_group import CommandGroup
from mdc_core.delivery.signing import dump_private_keys, new_key
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
                f"the database: {str(error.orig).strip()}\nIs it the one that MDC_DATABASE_URL or MDC_DATA_DIR names, "
                "and up to date? `python -m server.cli migrate` makes what is missing."
            )
        if isinstance(error, BaseError):
            return f"the object store, which MDC_OBJECTS_URL names: {error}"
        return super().reason(error)


app = typer.Typer(
    cls=_Commands, help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.command()
def migrate(revision: str = "head") -> None:
    """Bring the database up to a revision; run it before a new release starts."""
    migrations.upgrade(Settings().database_url, revision)


@app.command("create-key")
def create(
    name: str,
    scope: Annotated[list[str], typer.Option(help=f"One of {', '.join(SCOPES)}; may be repeated.")],
    days: Annotated[
        int | None,
        typer.Option(
            min=1, max=LONGEST_KEY.days, help="After so many days it ceases to work. [default: never]"
        ),
    ] = None,
) -> None:
    """Make an API key and print it; the first admin key of a server with a database of its own."""
    if unknown := [given for given in scope if given not in SCOPES]:
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
    """Print every API key without its secret, one JSON object a line."""
    db = Database(Settings().database_url)
    try:
        with db.read() as session:
            after = None
            while found := keys.page(session, after=after, limit=100):
                for key in found:
                    typer.echo(KeyResponse.of(key).model_dump_json())
                after = found[-1].id
    finally:
        db.dispose()


@app.command("revoke-key")
def revoke(key_id: str) -> None:
    """Make an API key useless, the last admin key too: `create-key` makes another."""
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
    """Print the OpenAPI document, as docs/openapi.json has it."""
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
        bool, typer.Option(help="Put it behind the keys in use: published, but not signing yet.")
    ] = False,
) -> None:
    """Make a key that signs manifests, and print the private key set for MDC_SIGNING_KEYS. Keep it secret."""
    typer.echo(dump_private_keys([*(Settings().manifest_keys() if rotate else ()), new_key()]))


@app.command("promote-signing-key")
def promote_signing_key() -> None:
    """Print the private key set with its last key first, which signs then: once devices have seen it published."""
    *former, last = Settings().manifest_keys()
    if not former:
        raise typer.BadParameter("there is only one key: create-signing-key --rotate adds the next")
    typer.echo(dump_private_keys([last, *former]))


@app.command()
def sweep(
    dry_run: Annotated[bool, typer.Option(help="Only print what would be deleted.")] = False,
    allow_most: Annotated[bool, typer.Option(help="Also when that is most of all uploads and sets.")] = False,
) -> None:
    """Delete objects that nothing refers to and that are older than MDC_SWEEP_AGE_SECONDS, and print them.

    API and workers do this by themselves every few hours. For a week `restore-swept` brings them back.
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
def restore_swept(prefix: Annotated[str, typer.Argument(help="Only keys that begin so.")] = "") -> None:
    """Put back what sweeps have taken within a week, and print its keys."""
    for key in restore(open_objects(Settings().objects_url), prefix):
        typer.echo(key)


@app.command("verify-objects")
def verify() -> None:
    """Read every object of uploads and sets, mend what can be mended, and print what was not right.

    What is missing or damaged comes back from the sweep's trash, and the object of a set also from its master. An
    upload that cannot be mended is mended by uploading the same bytes again. Status 1 when something stays wrong.
    """
    settings = Settings()
    db = Database(settings.database_url)
    left = 0
    try:
        for fault in verify_objects(db, open_objects(settings.objects_url)):
            typer.echo(
                f"{fault.key} {fault.what}, of {fault.of}: {'mended' if fault.mended else 'NOT mended'}"
            )
            left += not fault.mended
    finally:
        db.dispose()
    if left:
        raise typer.Exit(1)


@app.command("adopt-objects")
def adopt_objects() -> None:
    """Let the object store belong to this database, though it belongs to another or holds what this does not know."""
    settings = Settings()
    db = Database(settings.database_url)
    try:
        typer.echo(installation.adopt(db, open_objects(settings.objects_url)))
    finally:
        db.dispose()


if __name__ == "__main__":
    app()
