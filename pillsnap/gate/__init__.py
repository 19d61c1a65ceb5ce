"""Judging evidence by the policy: PROMOTE, HOLD or REJECT."""
