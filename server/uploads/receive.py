"""Write a request body to a file, hashing and counting it as it arrives."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from server.web.problems import Problem


@dataclass(frozen=True)
class Received:
    """A complete body."""

    path: Path
    sha256: str
    size: int


@asynccontextmanager
async def received_body(request: Request, folder: Path, limit: int) -> AsyncIterator[Received]:
    """The body in a temporary file in `folder`, deleted at the end. Raises `Problem` 413 above `limit` bytes."""
    await run_in_threadpool(folder.mkdir, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix="upload-")
    path = Path(name)
    digest = hashlib.sha256()
    size = 0
    try:
        with os.fdopen(handle, "wb") as file:
            async for piece in request.stream():
                size += len(piece)
                if size > limit:
                    raise too_large(f"more than {limit} bytes", limit)
                await run_in_threadpool(_append, file, digest, piece)
        yield Received(path, digest.hexdigest(), size)
    except ClientDisconnect as error:
        raise Problem(
            400, "upload-interrupted", f"the upload ended after {size} bytes: send it again"
        ) from error
    finally:
        await run_in_threadpool(path.unlink, missing_ok=True)


def _append(file: IO[bytes], digest: hashlib._Hash, piece: bytes) -> None:
    file.write(piece)
    digest.update(piece)


def too_large(size: str, limit: int) -> Problem:
    """The response to a body above its limit."""
    return Problem(413, "body-too-large", f"the body has {size}: send at most {limit}")
