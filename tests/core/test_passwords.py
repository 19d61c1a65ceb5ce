from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.passwords import hide_passwords

PASSWORDS = st.text(
    st.characters(codec="ascii", categories=("L", "N", "P", "S"), exclude_characters="/?#@"), min_size=4
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://anna:geheim@host/db", "postgresql+psycopg://anna:***@host/db"),
        ("asked (http://anna:ge@heim@host:5000/x) twice", "asked (http://anna:***@host:5000/x) twice"),
        ("postgresql://anna:ge/heim@host/db", "postgresql://anna:***@host/db"),
        ("://anna:geheim@host", "://anna:***@host"),
        ("postgresql://host/db?user=a&password=geheim&x=1", "postgresql://host/db?user=a&password=***&x=1"),
        ("s3://bucket?X-Amz-Security-Token=geheim", "s3://bucket?X-Amz-Security-Token=***"),
        ("http://127.0.0.1:5000/models/a@champion", "http://127.0.0.1:5000/models/a@champion"),
        ("models:/pillsnap@champion", "models:/pillsnap@champion"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("12:30: kim@example.org said: no", "12:30: kim@example.org said: no"),
    ],
)
def test_passwords_go_and_the_rest_stays(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown


@given(PASSWORDS, PASSWORDS)
def test_no_password_of_two_addresses_is_left(one: str, other: str) -> None:
    text = f"http://anna:{one}@a.b/c and postgresql://bert:{other}@d/e"
    assert hide_passwords(text) == "http://anna:***@a.b/c and postgresql://bert:***@d/e"
