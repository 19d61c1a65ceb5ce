"""What the gate costs at an alias: MLflow's server with the gated store beside the same server with MLflow's own.

    python benchmarks/registry.py
    python benchmarks/registry.py --megabytes 300 --rounds 100 --database postgresql+psycopg://user:password@host/empty

Each round hands a signed word in for another version of one large model, and promotes it: the server hashes all of its
files both times. Both servers take turns. At the end a hundred versions are promoted at once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from pillsnap.core.files import sha256_file, sha256_files, sha256_json
from pillsnap.gate.decision import Verdict
from pillsnap.gate.envelope import ENVELOPE_TAG, ChampionRef, Statement, seal
from pillsnap.gate.keys import generate, load_private_key
from pillsnap.gate.trust import VARIABLE, TrustRoot
from pillsnap.registry.audit import head

PROJECT = Path(__file__).parents[1]
SOURCE = "mlflow-artifacts:/models/m-1/artifacts"
NAME = "pills"
AT_ONCE = 100


class Server:
    """One of the two, in a process of its own, with one worker as `mlflow server --workers 1` starts it."""

    def __init__(self, kind: str, port: int, database: str, folder: Path) -> None:
        self.database = database
        self.url = f"http://127.0.0.1:{port}/api/2.0/mlflow"
        self._session = requests.Session()
        environment = {
            **os.environ,
            "_MLFLOW_SERVER_FILE_STORE": database,
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": (folder / "artifacts").as_uri(),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        }
        command = [sys.executable, "-W", "ignore", __file__, "--serve", kind, "--port", str(port)]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=folder)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=1).ok:
                    return
            except requests.RequestException:
                time.sleep(0.2)
        raise SystemExit(f"the {kind} server did not start")

    def post(self, path: str, body: dict[str, Any]) -> requests.Response:
        """One call on the kept connection."""
        return self._session.post(f"{self.url}/{path}", json=body, timeout=60)

    def timed(self, path: str, body: dict[str, Any]) -> float:
        """Milliseconds of a call that must be done."""
        start = time.perf_counter()
        answer = self.post(path, body)
        took = (time.perf_counter() - start) * 1000
        if not answer.ok:
            raise SystemExit(f"{path}: {answer.text}")
        return took


def serve(kind: str, port: int) -> None:
    """The process of a server."""
    import uvicorn
    from mlflow.server import BACKEND_STORE_URI_ENV_VAR, handlers
    from mlflow.server.fastapi_app import app

    from pillsnap.registry.store import gated_store

    database = os.environ[BACKEND_STORE_URI_ENV_VAR]
    handlers._model_registry_store = gated_store(database) if kind == "gated" else SqlAlchemyStore(database)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=82)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--database", help="an empty one for the gated server; default: sqlite in a temporary folder")
    parser.add_argument("--serve", choices=("gated", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=5077)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.port)
        return
    with tempfile.TemporaryDirectory(prefix="pillsnap-bench-") as name:
        measure(Path(name), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Start both servers, let them take turns, then let a hundred promote at once."""
    model = folder / "artifacts" / SOURCE.removeprefix("mlflow-artifacts:/")
    model.mkdir(parents=True)
    (model / "model.onnx").write_bytes(os.urandom(options.megabytes * 10**6))
    (model / "MLmodel").write_text("flavors: {}\n")
    trust = TrustRoot(folder / "trust")
    trust.folder.mkdir()
    shutil.copy(PROJECT / "registry" / "policy.yaml", trust.folder)
    generate(folder / "gate.key", trust.keys_folder, now=datetime.now(UTC))
    os.environ[VARIABLE] = str(trust.folder)
    gated = plain = None
    try:
        gated = Server("gated", options.port, options.database or f"sqlite:///{folder}/gated.db", folder)
        plain = Server("plain", options.port + 1, f"sqlite:///{folder}/plain.db", folder)
        for server in (gated, plain):
            server.timed("registered-models/create", {"name": NAME})
        bench = Bench(gated, plain, model, trust, folder / "gate.key")
        bench.turns(options.rounds)
        bench.at_once()
    finally:
        for server in filter(None, (gated, plain)):
            server.process.terminate()
            server.process.wait()


class Bench:
    """Versions of one model on both servers."""

    def __init__(self, gated: Server, plain: Server, model: Path, trust: TrustRoot, key: Path) -> None:
        self.gated, self.plain, self.trust, self.key = gated, plain, trust, load_private_key(key)
        self.sha256, self.tree = sha256_file(model / "model.onnx"), sha256_json(sha256_files(model))
        self.champion: ChampionRef | None = None

    def version(self, server: Server) -> tuple[str, int]:
        """Number and time of creation of a new one."""
        # straight into the database: over the network MLflow asks for a run whose folder the source lies in
        made = SqlAlchemyStore(server.database).create_model_version(NAME, SOURCE)
        return str(made.version), int(made.creation_timestamp)

    def word(self) -> dict[str, Any]:
        """The tag that an honest gate sets on a new version."""
        number, created = self.version(self.gated)
        with SqlAlchemyStore(self.gated.database).engine.connect() as connection:
            record = head(connection)
        statement = Statement(
            decision_id=uuid.uuid4().hex, replaces=None, issued_at_ms=int(time.time() * 1000), model_name=NAME,
            model_version=number, created_at_ms=created, bundle_sha256=self.sha256, artifact_sha256=self.tree,
            manifest_hash="a" * 64, policy_sha256=self.trust.policy().sha256, evidence_sha256="e" * 64,
            champion=self.champion, record=record, verdict=Verdict.PROMOTE, reasons=(), figures={"top1": "92.5 %"},
            evidence_run_id="r", code="benchmark",
        )  # fmt: skip
        return {"name": NAME, "version": number, "key": ENVELOPE_TAG, "value": seal(statement, self.key)}

    def turns(self, rounds: int) -> None:
        """Word and alias on the gated server, tag and alias on the plain one."""
        times: dict[str, list[float]] = {name: [] for name in ("word", "alias", "plain tag", "plain alias")}
        for _ in range(rounds):
            word = self.word()
            times["word"].append(self.gated.timed("model-versions/set-tag", word))
            alias = {"name": NAME, "alias": "champion", "version": word["version"]}
            times["alias"].append(self.gated.timed("registered-models/alias", alias))
            self.champion = ChampionRef(version=word["version"], bundle_sha256=self.sha256)
            number, _ = self.version(self.plain)
            times["plain tag"].append(self.plain.timed("model-versions/set-tag", {**word, "version": number}))
            times["plain alias"].append(self.plain.timed("registered-models/alias", {**alias, "version": number}))
        print(f"{'':14}{'p50 ms':>9}{'p95 ms':>9}   {rounds} rounds, one after the other")
        for name, taken in times.items():
            print(f"{name:14}{statistics.median(taken):9.1f}{sorted(taken)[int(0.95 * (rounds - 1))]:9.1f}")

    def at_once(self) -> None:
        """A hundred versions, all judged against the present champion, promoted by a hundred clients."""
        words = [self.word() for _ in range(AT_ONCE)]
        for word in words:
            self.gated.timed("model-versions/set-tag", word)

        def promote(word: dict[str, Any]) -> int:
            body = {"name": NAME, "alias": "champion", "version": word["version"]}
            return requests.post(f"{self.gated.url}/registered-models/alias", json=body, timeout=300).status_code

        start = time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            codes = list(pool.map(promote, words))
        counted = {code: codes.count(code) for code in sorted(set(codes))}
        print(f"\n{AT_ONCE} promotions at once: answers {counted} in {time.perf_counter() - start:.1f} s")
        if counted != {200: 1, 403: AT_ONCE - 1}:
            raise SystemExit("that is not one champion and a hundred answers")


if __name__ == "__main__":
    main()
