"""Operator's commands: `python -m server.cli migrate`, `create-key`, `create-signing-key`, `sweep`."""

from __future__ import annotations

from typing import Annotated

import typer

from mdc_core.errors import ConfigError
from mdc_core.signing import dump_private_keys, new_key
from server.auth import SCOPES, create_key
from server.settings import Settings
from server.store import migrate as migrations
from server.store.db import Database
from server.store.objects import open_objects
from server.store.sweep import sweep as swept

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@app.command()
def migrate(revision: str = "head") -> None:
    """Bring the database up to a revision; run it before a new release starts."""
    migrations.upgrade(Settings().database_url, revision)


@app.command("create-key")
def create(
    name: str,
    scope: Annotated[list[str], typer.Option(help=f"One of {', '.join(SCOPES)}; may be repeated.")],
) -> None:
    """Make an API key and print it; the first admin key of a server with a database of its own."""
    if unknown := [given for given in scope if given not in SCOPES]:
        raise typer.BadParameter(f"there is no scope {unknown[0]!r}: choose from {', '.join(SCOPES)}")
    settings = Settings()
    db = Database(settings.database_url)
    try:
        secret_key = settings.secret_key()
        with db.begin() as session:
            _, token = create_key(session, secret_key, name=name, scopes=sorted(set(scope)))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    finally:
        db.dispose()
    typer.echo(token)


@app.command("create-signing-key")
def create_signing_key(
    rotate: Annotated[
        bool, typer.Option(help="Let the keys that are in use follow the new one, which then signs.")
    ] = False,
) -> None:
    """Make a key that signs manifests, and print the private key set for MDC_SIGNING_KEYS. Keep it secret."""
    try:
        former = Settings().manifest_keys() if rotate else ()
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(dump_private_keys([new_key(), *former]))


@app.command()
def sweep(
    dry_run: Annotated[bool, typer.Option(help="Only print what would be deleted.")] = False,
) -> None:
    """Delete objects that nothing refers to and that are older than MDC_SWEEP_AGE_SECONDS, and print them.

    API and workers do this by themselves every few hours.
    """
    settings = Settings()
    db = Database(settings.database_url)
    count = total = 0
    try:
        objects = open_objects(settings.objects_url)
        for stored in swept(db, objects, settings.sweep_age_seconds, dry_run=dry_run):
            typer.echo(f"{stored.key} {stored.size}")
            count, total = count + 1, total + stored.size
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    finally:
        db.dispose()
    typer.echo(f"{count} objects, {total} bytes" + (" would be deleted" if dry_run else " deleted"), err=True)


if __name__ == "__main__":
    app()
