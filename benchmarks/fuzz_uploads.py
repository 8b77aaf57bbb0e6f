"""Bodies of uploads for benchmarks/fuzz.py, as a module of hooks that Schemathesis loads."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import schemathesis
from hypothesis import strategies as st


def _npz() -> bytes:
    buffer = io.BytesIO()
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 0, 1])
    np.savez(buffer, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return buffer.getvalue()


BODIES = st.sampled_from([_npz(), _npz()[:-30], b"", b"PK"]) | st.binary(max_size=2000)
for media_type in ("application/x-npz", "application/zip"):
    schemathesis.openapi.media_type(media_type, BODIES)


@schemathesis.serializer("application/x-npz", "application/zip")
def _as_it_is(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
