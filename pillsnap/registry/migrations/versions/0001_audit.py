"""The audit: rows, the head of their chain, and triggers that refuse to change or delete a row."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TEXTS = {
    "at": 40, "actor": 256, "role": 40, "action": 40, "model": 256, "version": 40, "alias": 256, "before": 40,
    "verdict": 20, "decision_id": 64, "bundle_sha256": 64, "manifest_hash": 64, "policy_sha256": 64, "outcome": 20,
    "previous_hash": 64, "hash": 64,
}  # fmt: skip


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "pillsnap_audit",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        *(sa.Column(name, sa.String(length), nullable=False) for name, length in _TEXTS.items()),
    )
    head = op.create_table(
        "pillsnap_audit_head",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "number": 0, "hash": "0" * 64}])
    if op.get_bind().dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER pillsnap_audit_no_{event.lower()} BEFORE {event} ON pillsnap_audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END"
            )
    else:
        op.execute(
            "CREATE FUNCTION pillsnap_audit_is_append_only() RETURNS trigger AS "
            "$$ BEGIN RAISE EXCEPTION 'the audit is append-only'; END $$ LANGUAGE plpgsql"
        )
        op.execute(
            "CREATE TRIGGER pillsnap_audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON pillsnap_audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION pillsnap_audit_is_append_only()"
        )
