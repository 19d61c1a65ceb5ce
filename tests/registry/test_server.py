"""What `pillsnap registry server` makes and refuses before MLflow starts; the server itself is tried in tests/e2e."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pillsnap.core import interruption
from pillsnap.core.errors import ConfigError, GateRefusedError
from pillsnap.gate.trust import TrustRoot
from pillsnap.registry import server
from pillsnap.registry.actor import VARIABLE, Actor, Role, Roles, current_actor
from pillsnap.registry.server import Home, ServerSettings, add_user, check, remove_user


def settings(home: Home, trust: TrustRoot, database: str = "") -> ServerSettings:
    return ServerSettings(home, trust, "127.0.0.1", 5000, database or home.database, home.artifacts, 1, "", "")


def test_secrets_are_made_once_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    first = home.prepare()
    assert home.prepare() == first
    assert len(set(first.values())) == 2
    for path in (home.folder, *home.folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(home.auth_config().stat().st_mode) == 0o600


def test_it_does_not_start_where_nothing_could_be_promoted(tmp_path: Path, trust: TrustRoot, gate: Any) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(ConfigError, match=r"no file of roles there; make one with: pillsnap registry users add"):
        check(settings(home, trust))
    trust.roles_file.write_text("roles_version: 1\nusers: {}\n")
    check(settings(home, trust))
    with pytest.raises(ConfigError, match="the gated registry is not installed for oracle"):
        check(settings(home, trust, "oracle://x"))
    next(trust.keys_folder.iterdir()).unlink()
    with pytest.raises(ConfigError, match=r"no public key there.*pillsnap registry keygen"):
        check(settings(home, trust))
    (trust.folder / "policy.yaml").unlink()
    with pytest.raises(ConfigError, match="no gate policy there"):
        check(settings(home, trust))


@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")  # both of MLflow's server
@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")
def test_users_and_roles(tmp_path: Path, trust: TrustRoot) -> None:
    home = Home(tmp_path / "home")
    made = add_user(home, trust, "kim", Role.RELEASE_MANAGER)
    assert made is not None
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert len(made.read_text().strip()) >= 20
    assert add_user(home, trust, "lee", Role.ENGINEER, "a password of lee's own") is None
    assert add_user(home, trust, "kim", Role.ENGINEER) is None, "another role, the same password"
    assert Roles.load(trust.roles_file).users == {"kim": Role.ENGINEER, "lee": Role.ENGINEER}
    remove_user(home, trust, "kim")
    assert Roles.load(trust.roles_file).users == {"lee": Role.ENGINEER}
    assert not made.exists()
    with pytest.raises(ConfigError, match="there is none"):
        remove_user(home, trust, "kim")
    for name in ("", "a b", "../x", "<b>"):
        with pytest.raises(ConfigError, match="letters, digits"):
            add_user(home, trust, name, Role.ENGINEER)


@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")
@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")
def test_a_password_is_changed_where_one_is_given(tmp_path: Path, trust: TrustRoot) -> None:
    home = Home(tmp_path / "home")
    made = add_user(home, trust, "kim", Role.GATE)
    assert made is not None
    add_user(home, trust, "kim", Role.GATE, "another password")
    assert not made.exists(), "the first one, which holds no more"
    with server._logins(home) as logins:
        assert logins.authenticate_user("kim", "another password")
        assert [role.name for role in logins.list_user_roles(logins.get_user("kim").id)] == []
    with pytest.raises(ConfigError, match="user 'kim': Password must be"):
        add_user(home, trust, "kim", Role.GATE, "short")
    for role, has in ((Role.RELEASE_MANAGER, True), (Role.RELEASE_MANAGER, True), (Role.ENGINEER, False)):
        add_user(home, trust, "kim", role)
        with server._logins(home) as logins:
            names = [one.name for one in logins.list_user_roles(logins.get_user("kim").id)]
        assert names == ["pillsnap-release-managers"] * has


def test_what_comes_during_the_start_ends_what_was_started(
    tmp_path: Path, trust: TrustRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(_: ServerSettings) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "60"], start_new_session=True))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(server, "start", start)
    monkeypatch.setattr(interruption, "_told_s", None)
    monkeypatch.setattr(interruption, "_heard", set())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGINT, interruption._interrupt)
    try:
        with pytest.raises(KeyboardInterrupt, match="SIGINT"):
            server.run(settings(Home(tmp_path), trust))
        assert started[0].poll() == -signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is interruption._interrupt
        assert signal.getsignal(signal.SIGTERM) is before[signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        started[0].kill()
        started[0].wait()


def test_it_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    """And soon: a container has ten seconds. Its child, here, wants a moment to end."""
    child = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), exit(3))); time.sleep(100)"
    lines = (
        "import subprocess, sys",
        "from pillsnap.registry import server",
        f"words = [sys.executable, '-c', {child!r}]",
        "server.start = lambda settings: subprocess.Popen(words, start_new_session=True)",
        "print('started', flush=True)",
        "sys.exit(server.run(None))",
    )
    process = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(2)  # for its child
        process.terminate()
        assert process.wait(15) == 3
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("roles_version: 1\nusers: {kim: boss}\n", "users.kim"),
        ("roles_version: 2\nusers: {}\n", "roles_version"),
        ("roles_version: 1\nuser: {}\n", "user: unknown key"),
    ],
)
def test_a_wrong_file_of_roles(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "roles.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        Roles.load(path)


def test_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    actor = current_actor()
    assert actor.name.startswith("local:")
    actor.must_be(Role.RELEASE_MANAGER, "anything")  # nobody asks for roles here
    path = tmp_path / "roles.yaml"
    path.write_text("roles_version: 1\nusers: {kim: release_manager}\n")
    monkeypatch.setenv(VARIABLE, str(path))
    assert current_actor().role == Role.ENGINEER, "whoever is not named"
    with pytest.raises(GateRefusedError, match="setting champion is for the role release_manager; lee is engineer"):
        Actor("lee", Role.ENGINEER).must_be(Role.RELEASE_MANAGER, "setting champion")
    Actor("kim", Role.RELEASE_MANAGER).must_be(Role.RELEASE_MANAGER, "setting champion")
    path.unlink()
    with pytest.raises(ConfigError, match="no file of roles there"):
        current_actor()
