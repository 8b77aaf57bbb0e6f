"""SQL and object storage. Functions take a `Session` and never commit; the caller's `with db.begin()` does."""
