"""Serve the API, with limits on connections. Settings come from `MDC_…` in the environment."""

from __future__ import annotations

import argparse

import uvicorn
from pydantic import ValidationError

from server.settings import Settings, wrong_settings
from server.web.connections import BoundedHttp


def main() -> None:
    """`python -m server`: runs until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser("python -m server", description=__doc__)
    parser.add_argument("--host", help="address to listen on [default: MDC_HOST]")
    parser.add_argument("--port", type=int, help="port to listen on [default: MDC_PORT]")
    parser.add_argument("--workers", type=int, default=1, help="processes [default: 1]")
    options = parser.parse_args()
    try:
        settings = Settings()
    except ValidationError as error:
        parser.error(wrong_settings(error))
    uvicorn.run(
        "server.app:app_from_env",
        factory=True,
        host=options.host or settings.host,
        port=settings.port if options.port is None else options.port,
        workers=options.workers,
        http=BoundedHttp,
        ws="none",  # not used, and their connections would have no limits
        loop="asyncio",  # uvloop accepts one connection per turn, so new ones would wait for busy ones
        access_log=False,
        log_level="warning",
        # Without this, any process on this machine could claim any client address.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
    )


if __name__ == "__main__":
    main()
