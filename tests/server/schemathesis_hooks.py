"""Bodies of generated uploads, good and bad. Schemathesis loads it by name, too, from SCHEMATHESIS_HOOKS."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.server.archives import arrays, images, zipped


def _bodies(good: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from([good, good[:-30], b"", b"PK"]) | st.binary(max_size=2000)


schemathesis.openapi.media_type("application/x-npz", _bodies(arrays()))
schemathesis.openapi.media_type("application/zip", _bodies(zipped(images())))


@schemathesis.serializer("application/x-npz", "application/zip")
def _as_it_is(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
