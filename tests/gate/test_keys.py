from __future__ import annotations

import base64
import json
import stat
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.cli.main import cli
from pillsnap.core.errors import ConfigError, EvidenceError, TamperedError
from pillsnap.core.process_environment import NO_HOME
from pillsnap.gate.keys import (
    PASSWORD_VARIABLE,
    KeyRing,
    default_private_file,
    generate,
    load_private_key,
    retire,
    revoke,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    return tmp_path


def pair(folder: Path, name: str = "gate.key", now: datetime = NOW) -> tuple[str, bytes]:
    """Id of a new key, and its signature of b"text"."""
    public = generate(folder / name, folder / "keys", now=now, comment="c")
    return public.key_id, load_private_key(folder / name).sign(b"text")


def verify(folder: Path, key_id: str, signature: bytes, when: datetime = NOW, text: bytes = b"text") -> None:
    KeyRing.load(folder / "keys").verify(key_id, signature, text, when)


def test_what_a_pair_signs_is_verified(folder: Path) -> None:
    key_id, signature = pair(folder)
    verify(folder, key_id, signature)
    assert stat.S_IMODE((folder / "gate.key").stat().st_mode) == 0o600
    [public] = (folder / "keys").iterdir()
    assert public.name == f"{key_id}.json"
    assert "PRIVATE" not in public.read_text(encoding="utf-8")
    assert json.loads(public.read_text(encoding="utf-8"))["comment"] == "c"


def test_a_key_is_never_overwritten(folder: Path) -> None:
    pair(folder)
    before = (folder / "gate.key").read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        pair(folder)
    assert (folder / "gate.key").read_bytes() == before
    assert len(list((folder / "keys").iterdir())) == 1


def test_half_a_pair_is_not_left_behind(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(OSError):
        generate(folder / "gate.key", folder / "file", now=NOW)
    assert not (folder / "gate.key").exists()


@pytest.mark.parametrize("signature", [b"", b"\0" * 64, b"x" * 63, b"x" * 65])
def test_attack_of_a_forged_signature(folder: Path, signature: bytes) -> None:
    key_id, _ = pair(folder)
    with pytest.raises(TamperedError, match="changed or forged"):
        verify(folder, key_id, signature)


@given(bit=st.integers(0, 64 * 8 - 1))
def test_attack_by_a_flipped_bit_of_the_signature(tmp_path_factory: pytest.TempPathFactory, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flip")
    key_id, signature = pair(folder)
    changed = bytearray(signature)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(TamperedError):
        verify(folder, key_id, bytes(changed))


def test_attack_with_a_wrong_key(folder: Path) -> None:
    trusted, _ = pair(folder)
    (folder / "thief" / "keys").mkdir(parents=True)
    stranger, signature = pair(folder / "thief")
    with pytest.raises(TamperedError, match=f"not trusted here .trusted: {trusted}"):
        verify(folder, stranger, signature)
    with pytest.raises(TamperedError, match="changed or forged"):
        verify(folder, trusted, signature)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "*", "Ａ" * 32, "\u202e" + "a" * 31, "a" * 10_000, "\0"])
def test_attack_by_strange_key_ids(folder: Path, name: str) -> None:
    _, signature = pair(folder)
    with pytest.raises(TamperedError, match="not trusted here") as caught:
        verify(folder, name, signature)
    assert len(str(caught.value)) < 400


def test_attack_by_upper_case_key_id(folder: Path) -> None:
    key_id, signature = pair(folder)
    with pytest.raises(TamperedError, match="not trusted here"):
        verify(folder, key_id.upper() + " ", signature)


def test_attack_dated_before_the_key_was(folder: Path) -> None:
    key_id, signature = pair(folder)
    with pytest.raises(TamperedError, match=r"before key .* began to sign"):
        verify(folder, key_id, signature, NOW - HOUR)


def test_no_keys_trust_nobody(folder: Path) -> None:
    key_id, signature = pair(folder)
    for empty in (folder / "nothing", folder):
        with pytest.raises(TamperedError, match="trusted: none"):
            KeyRing.load(empty).verify(key_id, signature, b"text", NOW)


def test_rotation(folder: Path) -> None:
    """The old key's envelopes stay valid when it is retired, its new ones are not, and a revocation ends them all."""
    old, old_signature = pair(folder, "old.key")
    new, new_signature = pair(folder, "new.key", NOW + HOUR)
    retire(folder / "keys", old, now=NOW + 2 * HOUR)
    verify(folder, old, old_signature, NOW + HOUR)
    verify(folder, new, new_signature, NOW + 3 * HOUR)
    with pytest.raises(TamperedError, match="expired"):
        verify(folder, old, old_signature, NOW + 3 * HOUR)
    revoke(folder / "keys", old, now=NOW + 4 * HOUR)
    for when in (NOW, NOW + HOUR, NOW + 5 * HOUR):
        with pytest.raises(TamperedError, match="revoked"):
            verify(folder, old, old_signature, when)
    verify(folder, new, new_signature, NOW + 5 * HOUR)


def test_attack_by_moving_the_end_of_a_key(folder: Path) -> None:
    key_id, _ = pair(folder)
    retire(folder / "keys", key_id, now=NOW + HOUR)
    before = (folder / "keys" / f"{key_id}.json").read_bytes()
    with pytest.raises(ConfigError, match="nothing to retire"):
        retire(folder / "keys", key_id, now=NOW + 2 * HOUR)
    assert (folder / "keys" / f"{key_id}.json").read_bytes() == before
    revoke(folder / "keys", key_id, now=NOW + 2 * HOUR)
    for again in (retire, revoke):
        with pytest.raises(ConfigError, match="nothing to re"):
            again(folder / "keys", key_id, now=NOW + 3 * HOUR)
    with pytest.raises(ConfigError, match="'nobody': no such key .*there: " + key_id):
        revoke(folder / "keys", "nobody", now=NOW)


def rewrite(folder: Path, key_id: str, **changes: Any) -> Path:
    path = folder / "keys" / f"{key_id}.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, **changes}), encoding="utf-8")
    return path


def test_attack_by_a_swapped_public_key(folder: Path) -> None:
    key_id, _ = pair(folder)
    (folder / "thief" / "keys").mkdir(parents=True)
    stranger, _ = pair(folder / "thief")
    theirs = json.loads((folder / "thief" / "keys" / f"{stranger}.json").read_text(encoding="utf-8"))
    rewrite(folder, key_id, public_key=theirs["public_key"])
    with pytest.raises(ConfigError, match=f"is another key, {stranger}"):
        KeyRing.load(folder / "keys")
    (folder / "keys" / f"{key_id}.json").write_text(json.dumps(theirs), encoding="utf-8")
    with pytest.raises(ConfigError, match="name the file after its key"):
        KeyRing.load(folder / "keys")


@pytest.mark.parametrize("public_key", ["", "!", base64.b64encode(b"short").decode(), "Ａ" * 44])
def test_a_public_key_that_is_none(folder: Path, public_key: str) -> None:
    key_id, _ = pair(folder)
    rewrite(folder, key_id, public_key=public_key)
    with pytest.raises(ConfigError, match="holds no Ed25519 key"):
        KeyRing.load(folder / "keys")


@pytest.mark.parametrize(
    "changes", [{"not_before": "2026-01-01T00:00:00"}, {"algorithm": "none"}, {"extra": 1}, {"not_after": "soon"}]
)
def test_a_public_key_file_of_another_form(folder: Path, changes: dict[str, Any]) -> None:
    key_id, _ = pair(folder)
    rewrite(folder, key_id, **changes)
    with pytest.raises(EvidenceError, match=f"{next(iter(changes))}.*registry keygen"):
        KeyRing.load(folder / "keys")


@pytest.mark.skipif(sys.platform == "win32", reason="no modes")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_private_key_that_others_can_read_is_not_used(folder: Path, mode: int) -> None:
    pair(folder)
    (folder / "gate.key").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_private_key(folder / "gate.key")


def test_a_private_key_that_is_none(folder: Path) -> None:
    with pytest.raises(ConfigError, match="registry keygen"):
        load_private_key(folder / "gate.key")
    path = folder / "gate.key"
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is no private key"):
        load_private_key(path)
    path.write_bytes(generate_ec(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="another kind"):
        load_private_key(path)


def test_an_encrypted_key_needs_its_password(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "geheim")
    key_id, signature = pair(folder)
    verify(folder, key_id, signature)
    assert b"ENCRYPTED" in (folder / "gate.key").read_bytes()
    for wrong in ("", "falsch"):
        monkeypatch.setenv(PASSWORD_VARIABLE, wrong)
        with pytest.raises(ConfigError, match=PASSWORD_VARIABLE) as caught:
            load_private_key(folder / "gate.key")
        assert "geheim" not in str(caught.value)
    # a password that a key does not need is no fault of the file, but it says that another key was expected
    monkeypatch.delenv(PASSWORD_VARIABLE)
    pair(folder, "plain.key")
    monkeypatch.setenv(PASSWORD_VARIABLE, "geheim")
    with pytest.raises(ConfigError, match=PASSWORD_VARIABLE):
        load_private_key(folder / "plain.key")


def test_where_the_private_key_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert default_private_file() == tmp_path / ".config" / "pillsnap" / "gate.key"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert default_private_file() == tmp_path / ".config" / "pillsnap" / "gate.key"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "x"))
    assert default_private_file() == tmp_path / "x" / "pillsnap" / "gate.key"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", NO_HOME)
    with pytest.raises(ConfigError, match=r"no home folder.*set HOME or XDG_CONFIG_HOME, or name the file"):
        default_private_file()


@pytest.fixture
def trust_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = folder / "trust"
    root.mkdir()
    monkeypatch.setenv("PILLSNAP_TRUST_ROOT", str(root))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    return root


def call(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["registry", *arguments])
    if done.exception is not None:
        raise done.exception
    return done.output


def test_commands_make_list_retire_and_revoke(trust_root: Path, folder: Path) -> None:
    assert "no model version can become champion" in call("keys")
    out = call("keygen", "--comment", "the first")
    [public] = (trust_root / "keys").iterdir()
    assert out.startswith(f"key: {public.stem}\n")
    private = folder / "config" / "pillsnap" / "gate.key"
    secret = b"".join(private.read_bytes().splitlines()[1:-1]).decode()
    assert secret not in out.replace("\n", "")
    assert "signs (the first)" in call("keys")
    assert "retired on" in call("keys", "retire", public.stem)
    assert f"{public.stem}  since" in call("keys")
    assert "nothing that it signed is valid" in call("keys", "revoke", public.stem)
    with pytest.raises(ConfigError, match="no such key"):
        call("keys", "retire", "nobody")
    with pytest.raises(ConfigError, match="never overwritten"):
        call("keygen")


@pytest.mark.parametrize("name", ["gate.key", "keys/gate.key", "keys/../gate.key"])
def test_a_private_key_does_not_lie_where_all_may_read(trust_root: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="folder of the gate alone"):
        call("keygen", "--private", str(trust_root / name))
    assert not (trust_root / "gate.key").exists()
