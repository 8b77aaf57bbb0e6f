"""Runs the revisions on the connection that `server.store.migrate` opened, in one transaction."""

from __future__ import annotations

from alembic import context

from server.store.tables import Base

connection = context.config.attributes.get("connection")
if connection is None:
    raise RuntimeError("migrations run through server.store.migrate: use its upgrade or downgrade")

context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,
    compare_type=True,
    # SQLite changes tables inside a transaction as well; the driver is told so by server.store.db.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
