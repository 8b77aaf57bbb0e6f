"""CORS: pages of other origins may read what devices read, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = ("/subsets/", "/v1/sets", "/v1/keyset")
EXPOSED = ("Content-Range", "ETag", "Repr-Digest", "Content-Location", "MDC-Epochs", "MDC-Verdict")
SENT = ("Authorization", "Content-Type", "If-Match", "If-None-Match", "If-Range", "Range")
MINUTES = 10
VARY = "Origin"
"""Sent with every response on these paths, even to clients without an Origin: caches must keep the two apart."""


class DeviceCors:
    """The Fetch standard's CORS protocol on the routes of sets, subsets and signing keys.

    Callers authenticate by API key, never by cookie, so credentials are not allowed.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        """`app` is the wrapped application."""
        self._plain = app
        self._shared = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST"),  # the only POST on these paths asks for a plan
            allow_headers=SENT,
            expose_headers=EXPOSED,
            max_age=60 * MINUTES,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not scope["path"].startswith(PATHS):
            await self._plain(scope, receive, send)
            return

        async def varied(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if VARY not in headers.get("Vary", ""):
                    headers.add_vary_header(VARY)
            await send(message)

        await self._shared(scope, receive, varied)
