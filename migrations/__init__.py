"""The database schema, revision by revision; `server.store.migrate` runs it."""
