"""A request body on its way to a file: hashed and counted while it arrives."""

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
    """A body that has arrived whole."""

    path: Path
    sha256: str
    size: int


@asynccontextmanager
async def received_body(request: Request, folder: Path, most: int) -> AsyncIterator[Received]:
    """The body in a temporary file in `folder`, removed at the end. `Problem` 413 above `most` bytes."""
    await run_in_threadpool(folder.mkdir, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix="upload-")
    path = Path(name)
    digest = hashlib.sha256()
    size = 0
    try:
        with os.fdopen(handle, "wb") as file:
            async for piece in request.stream():
                size += len(piece)
                if size > most:
                    raise too_large(f"more than {most} bytes", most)
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


def too_large(size: str, most: int) -> Problem:
    """The answer to a body that exceeds its limit."""
    return Problem(413, "body-too-large", f"the body has {size}, at most {most} are accepted")
