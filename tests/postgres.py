"""A PostgreSQL server of one's own in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

_DEBIAN = Path("/usr/lib/postgresql")


def binaries() -> Path | None:
    """Folder of ``initdb`` and ``pg_ctl``: Debian keeps them out of PATH."""
    found = [Path(tool).resolve().parent for tool in [shutil.which("pg_ctl")] if tool]
    found += sorted((path / "bin" for path in _DEBIAN.glob("*")), reverse=True)
    return next((path for path in found if (path / "initdb").exists() and (path / "pg_ctl").exists()), None)


class Postgres:
    """A running server."""

    def __init__(self, folder: Path, tools: Path) -> None:
        self._tools = tools
        self._data = folder / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._log = folder / "log"
        self._run("initdb", "-D", self._data, "-U", "pillsnap", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories='' -c fsync=off"
        (self._data / "postgresql.auto.conf").write_text("")
        self._options = options
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://pillsnap:geheim@127.0.0.1:{self.port}/postgres"

    def create(self, name: str, template: str = "template0") -> str:
        """A new database; its URL."""
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        engine.dispose()
        return f"{self.url.rpartition('/')[0]}/{name}"

    def start(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-l", self._log, "-o", self._options, "-w", "start")

    def stop(self) -> None:
        """As when the machine goes down: connections are cut."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    def _run(self, tool: str, *arguments: object) -> None:
        # PostgreSQL refuses to run as root
        other = {"user": _other().pw_uid, "group": _other().pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        command = [str(self._tools / tool), *map(str, arguments)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=60, cwd="/", **other,
        ) if tool != "pg_ctl" else subprocess.run(  # the server would hold a pipe open
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60,
            cwd="/", **other,
        )  # fmt: skip
        said = done.stdout if tool != "pg_ctl" else (self._log.read_text() if self._log.exists() else "")
        assert done.returncode == 0, f"{tool}: {said}"


def _other() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("no user to run PostgreSQL as")


@contextmanager
def postgres(tools: Path) -> Iterator[Postgres]:
    """Start a server; it is gone after the block."""
    folder = Path(tempfile.mkdtemp(prefix="pillsnap-pg-"))
    if os.geteuid() == 0:
        os.chown(folder, _other().pw_uid, _other().pw_gid)
    try:
        server = Postgres(folder, tools)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
