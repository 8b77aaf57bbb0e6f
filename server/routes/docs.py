"""The API documentation in a browser, served by this host alone. The page forbids the browser to load anything else."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Response
from starlette.responses import FileResponse, HTMLResponse

router = APIRouter(include_in_schema=False)

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Swagger UI sets styles of its own
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SECONDS = 3600
"""How long a browser keeps scripts and styles."""
_FOLDER = Path(str(files("fastapi_offline"))) / "static"
"""Swagger UI as that package brings it."""
# Addresses are relative: the page works below a prefix of a proxy too.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Multisize Dataset Condensation</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="data:,">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  validatorUrl: null,
});
"""


@router.get("/docs")
async def page() -> HTMLResponse:
    """The page."""
    headers = {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return HTMLResponse(_PAGE, headers=headers)


@router.get("/docs/start.js")
async def start() -> Response:
    """The script that begins it."""
    return Response(_START, media_type="text/javascript", headers=_kept())


@router.get("/docs/swagger-ui-bundle.js")
async def script() -> FileResponse:
    """Swagger UI's script."""
    return FileResponse(_FOLDER / "swagger-ui-bundle.js", headers=_kept())


@router.get("/docs/swagger-ui.css")
async def style() -> FileResponse:
    """Swagger UI's styles."""
    return FileResponse(_FOLDER / "swagger-ui.css", headers=_kept())


def _kept() -> dict[str, str]:
    return {"Cache-Control": f"public, max-age={SECONDS}", "X-Content-Type-Options": "nosniff"}
