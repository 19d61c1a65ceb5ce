"""Every public method is classified, every guarded one attacked, and all else is MLflow's own behaviour."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.exceptions import MlflowException

from pillsnap.registry.rules import HISTORY_TAG, METHODS, Kind

HERE = Path(__file__).parent
HELPERS = {"promote": "set_registered_model_alias", "hand_in": "set_model_version_tag"}
"""Of the fixture ``shelf`` → what they call."""


def public_methods(of: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(of, inspect.isfunction) if not name.startswith("_")}


def stores() -> tuple[type, type, type, list[type]]:
    from mlflow.store.model_registry.abstract_store import AbstractStore
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
    from mlflow.store.model_registry.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore

    from pillsnap.registry import store as ours

    return AbstractStore, SqlAlchemyStore, WorkspaceAwareSqlAlchemyStore, [ours.GatedStore, ours._GatedWorkspaceStore]


def test_every_method_of_mlflow_is_classified(shelf: Any) -> None:
    _, plain, with_workspaces, _ = stores()
    for of in (plain, with_workspaces):
        unknown = set(public_methods(of)) ^ set(METHODS)
        assert not unknown, f"classify them in pillsnap/registry/rules.py: {sorted(unknown)}"


def test_what_is_guarded_is_ours_and_nothing_else_is(shelf: Any) -> None:
    abstract, plain, with_workspaces, gated = stores()
    for name, kind in METHODS.items():
        for of, own in zip(gated, (plain, with_workspaces), strict=True):
            if kind is Kind.GUARDED:
                assert getattr(of, name) is not getattr(own, name), f"{name} is called guarded and is MLflow's"
            else:
                assert getattr(of, name) is getattr(own, name), f"{name} is called {kind} and is not MLflow's"
        if kind is Kind.BUILT:
            assert getattr(plain, name) is getattr(abstract, name), f"{name} is not built of other methods any more"


def test_every_guarded_method_is_attacked() -> None:
    attacked = set()
    for path in HERE.glob("test_*.py"):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef) and function.name.startswith("test_attack"):
                called = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
                attacked |= called | {HELPERS[name] for name in called & set(HELPERS)}
    guarded = {name for name, kind in METHODS.items() if kind is Kind.GUARDED}
    assert guarded <= attacked, f"no test_attack… calls {sorted(guarded - attacked)}"


def test_signatures_are_those_of_mlflow(shelf: Any) -> None:
    """MLflow calls some by position and some by keyword."""
    _, plain, _, (gated, _) = stores()
    for name in (name for name, kind in METHODS.items() if kind is Kind.GUARDED):
        wanted = list(inspect.signature(getattr(plain, name)).parameters.values())
        ours = inspect.signature(getattr(gated, name)).parameters
        taken = [parameter.name for parameter in ours.values() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
        assert [parameter.name for parameter in wanted][: len(taken)] == taken
        rest = {parameter.kind for parameter in ours.values()} - {inspect.Parameter.POSITIONAL_OR_KEYWORD}
        assert len(wanted) == len(taken) or rest == {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    ("model", lambda s: s.create_registered_model("m", [RegisteredModelTag("a", "1")], "text")),
    ("model twice", lambda s: s.create_registered_model("m")),
    ("model without a name", lambda s: s.create_registered_model("")),
    ("model with a slash", lambda s: s.create_registered_model("a/b")),
    ("other model", lambda s: s.create_registered_model("n")),
    ("version", lambda s: s.create_model_version("m", "file:///x", "run", [ModelVersionTag("a", "1")], "link", "t")),
    ("version by names", lambda s: s.create_model_version(name="m", source="s3://b/x", run_id=None, model_id=None)),
    ("version of nothing", lambda s: s.create_model_version("none", "file:///x")),
    ("version of another model", lambda s: s.create_model_version("n", "file:///y")),
    ("describe", lambda s: s.update_model_version("m", "1", "new")),
    ("describe model", lambda s: s.update_registered_model("m", "new")),
    ("tag", lambda s: s.set_model_version_tag("m", "1", ModelVersionTag("b", "2"))),
    ("tag again", lambda s: s.set_model_version_tag("m", "1", ModelVersionTag("b", "3"))),
    ("tag too long", lambda s: s.set_model_version_tag("m", "1", ModelVersionTag("b", "x" * 100_001))),
    ("tag with a bad name", lambda s: s.set_model_version_tag("m", "1", ModelVersionTag("b\x07", "3"))),
    ("tag of nothing", lambda s: s.set_model_version_tag("m", "7", ModelVersionTag("b", "3"))),
    ("tag of a model", lambda s: s.set_registered_model_tag("m", RegisteredModelTag("b", "2"))),
    ("untag", lambda s: s.delete_model_version_tag("m", "1", "b")),
    ("untag what is not there", lambda s: s.delete_model_version_tag("m", "1", "zz")),
    ("untag a model", lambda s: s.delete_registered_model_tag("m", "b")),
    ("alias", lambda s: s.set_registered_model_alias("m", "best", "1")),
    ("alias moved", lambda s: s.set_registered_model_alias("m", "best", 2)),
    ("alias reserved", lambda s: s.set_registered_model_alias("m", "latest", "1")),
    ("alias with a bad name", lambda s: s.set_registered_model_alias("m", "a b", "1")),
    ("alias of nothing", lambda s: s.set_registered_model_alias("m", "best", "9")),
    ("by alias", lambda s: s.get_model_version_by_alias("m", "best")),
    ("by unknown alias", lambda s: s.get_model_version_by_alias("m", "worst")),
    ("no champion", lambda s: s.get_model_version_by_alias("m", "champion")),
    ("by latest", lambda s: s.get_model_version_by_alias("m", "latest")),
    ("unalias", lambda s: s.delete_registered_model_alias("m", "best")),
    ("unalias again", lambda s: s.delete_registered_model_alias("m", "best")),
    ("unalias champion", lambda s: s.delete_registered_model_alias("m", "champion")),
    ("archive", lambda s: s.transition_model_version_stage("m", "1", "Archived", False)),
    ("back", lambda s: s.transition_model_version_stage("m", "1", "none", False)),
    ("archive to none", lambda s: s.transition_model_version_stage("m", "1", "None", True)),
    ("stage unknown", lambda s: s.transition_model_version_stage("m", "1", "Best", False)),
    ("stage of nothing", lambda s: s.transition_model_version_stage("m", "9", "Archived", False)),
    ("where", lambda s: s.get_model_version_download_uri("n", "1")),
    ("latest", lambda s: s.get_latest_versions("m")),
    ("search", lambda s: s.search_registered_models()),
    ("search by tag", lambda s: s.search_registered_models("tags.a = '1'")),
    ("search versions", lambda s: s.search_model_versions("name = 'm'")),
    ("search badly", lambda s: s.search_model_versions("nonsense")),
    ("prompt", lambda s: s.create_prompt("p", "text", {"k": "v"})),
    ("prompt version", lambda s: s.create_prompt_version("p", "a {{ b }}", "text", {"k": "v"})),
    ("prompt alias", lambda s: s.set_prompt_alias("p", "best", 1)),
    ("prompt tag", lambda s: s.set_prompt_tag("p", "a", "b")),
    ("prompt version tag", lambda s: s.set_prompt_version_tag("p", 1, "a", "b")),
    ("prompts", lambda s: [(prompt.name, prompt.tags) for prompt in s.search_prompts()]),
    ("prompt by alias", lambda s: s.get_prompt_version_by_alias("p", "best").template),
    ("prompt untag", lambda s: s.delete_prompt_version_tag("p", 1, "a")),
    ("prompt unalias", lambda s: s.delete_prompt_alias("p", "best")),
    ("prompt version away", lambda s: s.delete_prompt_version("p", 1)),
    ("prompt away", lambda s: s.delete_prompt("p")),
    ("webhooks", lambda s: s.list_webhooks()),
    ("rename", lambda s: s.rename_registered_model("m", "k")),
    ("rename nothing", lambda s: s.rename_registered_model("m", "k")),
    ("rename into another", lambda s: s.rename_registered_model("k", "n")),
    ("delete version", lambda s: s.delete_model_version("k", "1")),
    ("delete version again", lambda s: s.delete_model_version("k", "1")),
    ("delete model", lambda s: s.delete_registered_model("k")),
    ("delete model again", lambda s: s.delete_registered_model("k")),
    ("what is left", lambda s: s.search_registered_models()),
]


def said(store: Any, call: Callable[[Any], Any]) -> Any:
    """The answer, or the error, without times."""
    try:
        answer = call(store)
    except MlflowException as error:
        text = re.sub(r"\(Background|\[SQL|0x[0-9a-f]+|DETAIL", "¶", str(error.message)).split("¶")[0]
        return ("error", error.error_code, error.get_http_status_code(), text)
    return plain(answer)


def plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key != HISTORY_TAG}
    if hasattr(value, "__dict__"):
        return {key: plain(entry) for key, entry in vars(value).items() if "time" not in key}
    return value


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_all_else_is_mlflows_own_behaviour(shelf: Any, second_database: str) -> None:
    """The same calls on MLflow's own store and on ours, one after the other, answer for answer, but for one tag."""
    _, own, _, _ = stores()
    other = own(second_database)
    different = {name: (a, b) for name, call in CALLS if (a := said(other, call)) != (b := said(shelf.store, call))}
    other.engine.dispose()
    assert different == {}
    assert [row["action"] for row in shelf.rows(outcome="refused")] == []


def test_every_database_of_mlflow_goes_through_the_gate_or_is_refused(shelf: Any) -> None:
    """MLflow looks a plain scheme up by its database, without the driver."""
    from mlflow.store.db.db_types import DATABASE_ENGINES

    from pillsnap.registry.store import gated_store

    with (HERE.parents[2] / "pyproject.toml").open("rb") as stream:
        offered = tomllib.load(stream)["project"]["entry-points"]["mlflow.model_registry_store"]
    assert {name for scheme in DATABASE_ENGINES for name in (scheme, f"gated+{scheme}")} <= set(offered)
    assert set(offered.values()) == {"pillsnap.registry.store:gated_store"}
    for uri in ("mysql://u:p@h/d", "gated+mssql://u:p@h/d", "mysql+pymysql://u:p@h/d"):
        with pytest.raises(MlflowException, match="the gate's registry runs on postgresql and sqlite"):
            gated_store(uri)
