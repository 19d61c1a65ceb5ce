"""The audit keeps each envelope that the gate has signed: it holds the record in place."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Rows of before have none."""
    op.add_column("pillsnap_audit", sa.Column("envelope", sa.Text, nullable=False, server_default=""))
