"""Alembic's entry for the tables of the audit: own version table, own tables, the connection of the caller."""

from alembic import context

from pillsnap.registry.audit import METADATA, VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=VERSION_TABLE
)
context.run_migrations()
