"""The application: `create_app(settings)`, or from outside `python -m server`."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from mdc_core import __version__
from mdc_core.errors import ConfigError
from mdc_core.system.malloc import share_freed_memory
from server.access.authenticate import Authenticator
from server.access.callers import KnownKeys
from server.access.ratelimit import RateLimits
from server.access.tokens import ensure_admin_key
from server.delivery.catalog import Catalog
from server.delivery.fast_path import FastPath
from server.delivery.manifests import Manifests
from server.delivery.rank_cache import RankCache
from server.jobs.event_stream import Watchers, called_at_exit_signals
from server.jobs.reaper import Reaper
from server.jobs.wakeup import Wakeup
from server.logs import configure_logging
from server.metrics import Measured, Metrics
from server.routes import datasets, docs, events, health, jobs, keys, keyset, sets, subsets
from server.services import Services
from server.settings import Settings
from server.store import installation, migrate
from server.store.db import Database
from server.store.objects import open_objects
from server.web import problems
from server.web.connections import raise_file_limit
from server.web.cors import DeviceCors
from server.web.problems import ProblemBody


def create_app(settings: Settings) -> FastAPI:
    """Create the API on the stores that the settings name.

    On startup, embedded mode migrates its database and creates the first admin key. Otherwise the migrations must have
    been run.

    Raises:
        ConfigError: the secret or the signing key is missing, or the object store's URL cannot be used.
    """
    app = _Api(
        title="Multisize Dataset Condensation",
        version=__version__,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        redirect_slashes=False,  # its redirect would go to the host in the header Host
    )
    services = app.state.services = _services(settings)
    app.add_middleware(Measured, metrics=services.metrics)  # the first is the innermost
    if settings.cors_origins:
        app.add_middleware(DeviceCors, origins=settings.cors_origins)
    problems.install(app)
    for module in (datasets, jobs, events, sets, subsets, keyset, keys, health, docs):
        app.include_router(module.router)
    _complete_openapi(app)
    return app


class _Api(FastAPI):
    """FastAPI behind the fast path: requests that it serves reach neither middleware nor router."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        services: Services = self.state.services
        if await services.fast_path.answer(scope, send):
            return
        is_answered = False

        async def watched(message: Message) -> None:
            nonlocal is_answered
            await send(message)
            is_answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await super().__call__(scope, receive, watched)
        except Exception:
            # Starlette raises the error again after its 500 response; uvicorn would then cut the connection.
            if not is_answered:
                raise


def _services(settings: Settings) -> Services:
    objects = open_objects(settings.objects_url)
    if settings.downloads == "redirect" and objects.url("x", 1) is None:
        raise ConfigError(
            f"MDC_DOWNLOADS is redirect, but {settings.objects_url!r} has no signed URLs: use proxy, or s3://…"
        )
    db = Database(settings.database_url)
    manifest_keys = settings.manifest_keys()
    watchers = Watchers(db, most_of_key=settings.key_streams)
    rates = RateLimits(settings.key_rate, settings.refusal_rate, settings.broker_url, settings.broker_prefix)
    secret_key = settings.secret_key()
    authenticator = Authenticator(db, secret_key, KnownKeys(), rates)
    catalog, ranks = Catalog(db), RankCache(objects, settings.cache_bytes)
    fast_path = FastPath(
        authenticator,
        catalog,
        ranks,
        redirects=settings.downloads == "redirect",
        shared=bool(settings.cors_origins),
    )
    return Services(
        settings=settings,
        db=db,
        objects=objects,
        wakeup=Wakeup(settings),
        secret_key=secret_key,
        manifest_keys=manifest_keys,
        authenticator=authenticator,
        rates=rates,
        catalog=catalog,
        manifests=Manifests(manifest_keys[0], settings.manifest_days),
        ranks=ranks,
        fast_path=fast_path,
        watchers=watchers,
        metrics=Metrics(db, watchers, fast_path),
    )


def app_from_env() -> FastAPI:
    """Create the API from the environment. It logs JSON lines."""
    configure_logging()
    raise_file_limit()
    share_freed_memory()
    app = create_app(Settings())
    gc.collect()
    gc.freeze()  # these objects live as long as the process; scanning them in every collection would delay requests
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    await run_in_threadpool(_prepare, services)
    reaper = Reaper(services.settings, services.db, services.objects, services.wakeup)
    reaper.start()
    try:
        with called_at_exit_signals(partial(_let_go, services)):
            yield
    finally:
        services.watchers.close()
        await services.rates.close()
        await run_in_threadpool(reaper.stop)
        services.wakeup.close()
        services.db.dispose()


def _let_go(services: Services) -> None:
    """Close what would keep the server from finishing its requests."""
    services.watchers.close()
    services.inspections.close()


def _prepare(services: Services) -> None:
    """Check or create what the application needs: broker file, schema and, in embedded mode, an admin key."""
    settings = services.settings
    services.wakeup.prepare()
    if settings.embedded:
        migrate.upgrade_apart(settings.database_url)
        installation.join(services.db, services.objects)
        with services.db.begin() as session:
            ensure_admin_key(settings, session)
        return
    with services.db.engine.connect() as connection:
        revision = migrate.current(connection)
    if revision != migrate.head():
        raise ConfigError(
            f"the database is at revision {revision}, this release needs {migrate.head()}: run "
            "python -m server.cli migrate"
        )
    installation.join_if_there(services.db, services.objects)


def _complete_openapi(app: FastAPI) -> None:
    """Add problems and partial configurations to the OpenAPI document, which FastAPI does not know."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            schema = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas |= schema.pop("$defs", {}) | {"Problem": schema}
            # A request holds any part of a configuration, since the preset fills the rest. Its model cannot say so.
            for field, config in (("condense", "CondenseConfig"), ("evaluate", "EvaluateConfig")):
                description = schemas["JobRequest"]["properties"][field]["description"]
                schemas["JobRequest"]["properties"][field] = {
                    "$ref": f"#/components/schemas/{config}",
                    "description": description,
                }
        return app.openapi_schema or {}

    app.openapi = described  # type: ignore[method-assign]
