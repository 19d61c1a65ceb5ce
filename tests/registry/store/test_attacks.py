"""Every way past the gate that a client of the registry's store has: none promotes, and the store still works."""

from __future__ import annotations

import base64
import itertools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import flask
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.exceptions import MlflowException

from pillsnap.gate.envelope import ENVELOPE_TAG, ChampionRef, open_envelope, seal
from pillsnap.gate.keys import load_private_key
from pillsnap.registry.actor import VARIABLE
from pillsnap.registry.rules import HISTORY_TAG, RECORD_TAG, SERVICE_SEEN_TAG
from pillsnap.registry.version_page import history_in, time_in

pytestmark = pytest.mark.usefixtures("still_works")


# ---- words that the gate has not said


def test_attack_a_tag_of_the_gate_by_hand(shelf: Any, bad: str) -> None:
    """What counts as one: ``test_rules.py``."""
    for name in ("gate.verdict", "GATE.verdict"):
        with shelf.refused("written by the gate alone"):
            shelf.store.set_model_version_tag("pills", bad, ModelVersionTag(name, "PROMOTE"))
        with shelf.refused("written by the gate alone"):
            shelf.store.set_registered_model_tag("pills", RegisteredModelTag(name, "3"))
        with shelf.refused("written by the gate alone"):
            shelf.store.create_model_version("pills", "file:///x", tags=[ModelVersionTag(name, "PROMOTE")])
        with shelf.refused("written by the gate alone"):
            shelf.store.create_registered_model("other", tags=[RegisteredModelTag(name, "3")])
    assert shelf.tags(bad)["gate.decision"] == "REJECT"


def test_attack_taking_a_refusal_away(shelf: Any, bad: str) -> None:
    for key in ("gate.verdict", "gate.defects", ENVELOPE_TAG):
        with shelf.refused("written by the gate alone"):
            shelf.store.delete_model_version_tag("pills", bad, key)
    with shelf.refused("written by the gate alone"):
        shelf.store.delete_registered_model_tag("pills", "gate.former_champions")


def test_attack_an_envelope_of_another_form(shelf: Any, bad: str) -> None:
    for envelope in ("", "PROMOTE", "{}", "[]", "null", "[" * 50_000, '{"payloadType":1}', "x" * 99_999):
        with shelf.refused("the envelope "):
            shelf.hand_in(envelope, bad)


def test_attack_an_oversize_envelope(shelf: Any, bad: str) -> None:
    with shelf.refused("an envelope of 100001 characters"):
        shelf.hand_in("x" * 100_001, bad)


def test_attack_a_forged_signature(shelf: Any, bad: str) -> None:
    envelope = json.loads(seal(shelf.statement(bad, "PROMOTE"), Ed25519PrivateKey.generate()))
    with shelf.refused("which is not trusted here"):
        shelf.hand_in(json.dumps(envelope, sort_keys=True, separators=(",", ":")), bad)
    trusted = json.loads(seal(shelf.statement(bad, "PROMOTE"), shelf.key))
    trusted["signatures"][0]["sig"] = envelope["signatures"][0]["sig"]
    with shelf.refused("the signature is not that of key"):
        shelf.hand_in(json.dumps(trusted, sort_keys=True, separators=(",", ":")), bad)


def test_attack_a_changed_payload_under_a_true_signature(shelf: Any, bad: str) -> None:
    envelope = json.loads(seal(shelf.statement(bad, "REJECT"), shelf.key))
    payload = base64.b64decode(envelope["payload"]).replace(b"REJECT", b"PROMOTE")
    envelope["payload"] = base64.b64encode(payload).decode()
    with shelf.refused("the signature is not that of key"):
        shelf.hand_in(json.dumps(envelope, sort_keys=True, separators=(",", ":")), bad)


def test_attack_the_envelope_of_another_version_or_model(shelf: Any, bad: str) -> None:
    with shelf.refused("was signed for pills version 1"):
        shelf.hand_in(shelf.tags("1")[ENVELOPE_TAG], bad)
    shelf.judged(name="others")
    with shelf.refused("was signed for others version 1"):
        shelf.hand_in(shelf.tags("1", "others")[ENVELOPE_TAG], "1")


def test_attack_an_old_word_played_again(shelf: Any) -> None:
    version = shelf.judged("PROMOTE")
    old = shelf.tags(version)[ENVELOPE_TAG]
    shelf.hand_in(shelf.statement(version, "REJECT"), version)
    with shelf.refused("signed to follow another one than stands here"):
        shelf.hand_in(old, version)
    assert shelf.tags(version)["gate.decision"] == "REJECT"
    with shelf.refused("does not become champion: REJECT"):
        shelf.promote(version)


def test_attack_a_word_with_an_older_date(shelf: Any) -> None:
    version = shelf.judged("REJECT")
    stands = open_envelope(shelf.tags(version)[ENVELOPE_TAG], shelf.trust.ring())
    with shelf.refused("the envelope is older than the one that stands"):
        shelf.hand_in(shelf.statement(version, issued_at_ms=stands.issued_at_ms), version)


def test_attack_a_word_from_the_future_or_with_the_clock_set_back(shelf: Any) -> None:
    version = shelf.version()
    statement = shelf.statement(version)
    with shelf.refused("set the clocks"):
        shelf.hand_in(statement.model_copy(update={"issued_at_ms": statement.issued_at_ms + 3_600_000}), version)
    with shelf.refused("before key"):
        shelf.hand_in(statement.model_copy(update={"issued_at_ms": statement.issued_at_ms - 3_600_000}), version)


def test_attack_an_expired_or_revoked_key(shelf: Any, tmp_path: Path) -> None:
    from pillsnap.gate.keys import generate

    file = tmp_path / "second.key"
    public = generate(file, shelf.trust.keys_folder, now=datetime.now(UTC) - timedelta(days=2))
    second = load_private_key(file)
    version, judged = shelf.version(), shelf.version()
    shelf.hand_in(shelf.statement(judged), judged, key=second)
    path = shelf.trust.keys_folder / f"{public.key_id}.json"
    public.model_copy(update={"not_after": datetime.now(UTC) - timedelta(days=1)}).save(path)
    with shelf.refused("had expired"):
        shelf.hand_in(shelf.statement(version), version, key=second)
    public.model_copy(update={"revoked": datetime.now(UTC)}).save(path)
    with shelf.refused("revoked"):
        shelf.hand_in(shelf.statement(version), version, key=second)
    with shelf.refused("the gate has not judged it"):
        shelf.promote(judged)  # what it signed before counts no longer


def test_attack_a_ring_without_keys_trusts_nobody(shelf: Any) -> None:
    version = shelf.judged()
    kept = {path: path.read_text() for path in shelf.trust.keys_folder.glob("*.json")}
    for path in kept:
        path.unlink()
    with shelf.refused("the gate has not judged it"):
        shelf.promote(version)
    for path, text in kept.items():
        path.write_text(text)


# ---- the alias


def test_attack_no_word_or_too_low_a_word(shelf: Any, bad: str) -> None:
    version = shelf.version()
    with shelf.refused("the gate has not judged it"):
        shelf.promote(version)
    with shelf.refused("does not become champion: REJECT"):
        shelf.promote(bad)
    with shelf.refused("does not become challenger: REJECT"):
        shelf.promote(bad, "challenger")
    hold = shelf.judged("HOLD")
    with shelf.refused("does not become champion: HOLD"):
        shelf.promote(hold)
    shelf.promote(hold, "challenger")
    assert shelf.champion() == "2"


def test_attack_an_alias_that_looks_like_a_guarded_one(shelf: Any, bad: str) -> None:
    for alias in ("Champion", "chаllenger"):  # the second with a letter of another alphabet
        with shelf.refused("looks like"):
            shelf.promote(bad, alias)


def test_attack_an_alias_in_a_look_alike_is_not_taken_for_the_champion(shelf: Any) -> None:
    for alias in ("champions", "best", "candidate", "champion-2", "prod"):
        shelf.promote(shelf.version(), alias)
    assert shelf.champion() is None
    for alias in ("latest", "v1"):
        with pytest.raises(MlflowException, match="reserved"):
            shelf.promote(shelf.version(), alias)


def test_attack_another_policy_or_an_old_judgement(shelf: Any) -> None:
    lowered = shelf.judged(policy_sha256="0" * 64)
    with shelf.refused("judged by another policy"):
        shelf.promote(lowered)
    compared = shelf.judged(champion=ChampionRef(version="9", bundle_sha256="c" * 64))
    with shelf.refused("compared with champion version 9, now there is none"):
        shelf.promote(compared)


def test_attack_a_statement_past_its_age(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pillsnap.registry import store as module

    version = shelf.judged()
    age = shelf.trust.policy().decision_max_age
    assert age is not None
    now = module._now_ms()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_now_ms", lambda: now + int(age.total_seconds() * 1000) + 60_000)
        with shelf.refused("days ago, more than"):
            shelf.promote(version)


def test_attack_the_trust_root_is_gone(shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    version = shelf.judged()
    with monkeypatch.context() as patch:
        patch.setenv("PILLSNAP_TRUST_ROOT", "/nowhere")
        with shelf.refused("no such folder"):
            shelf.promote(version)


# ---- versions, names, stages, prompts


def test_attack_a_copy_of_a_champion(shelf: Any, bad: str) -> None:
    """MLflow's blue button: it promotes nothing, and a copy would be another version that nobody has judged."""
    source = shelf.store.get_model_version("pills", "2")
    before = len(shelf.store.search_model_versions("name = 'pills'"))
    for name in ("pills", "copies"):
        with shelf.refused("To promote, set the alias champion"):
            shelf.store.copy_model_version(source, name)
    with shelf.refused("This button only copies"):
        shelf.store.create_model_version("pills", "models:/pills/2")
    assert len(shelf.store.search_model_versions("name = 'pills'")) == before


def test_attack_a_name_changed_into_a_judged_one(shelf: Any) -> None:
    shelf.judged(name="good")
    shelf.store.rename_registered_model("good", "pills")
    with shelf.refused("was signed for good version 1"):
        shelf.promote("1")
    assert shelf.rows(action="renamed")[0]["reason"] == "to pills"


def test_attack_renaming_or_deleting_what_has_a_champion(shelf: Any, bad: str) -> None:
    with shelf.refused("cannot be renamed"):
        shelf.store.rename_registered_model("pills", "other")
    with shelf.refused("cannot be deleted"):
        shelf.store.delete_registered_model("pills")
    with shelf.refused("version 2 is champion: it cannot be deleted"):
        shelf.store.delete_model_version("pills", "2")
    shelf.store.delete_registered_model_alias("pills", "champion")
    with shelf.refused("had a champion and cannot be deleted"):
        shelf.store.delete_registered_model("pills")


def test_attack_delete_and_recreate(shelf: Any) -> None:
    version = shelf.judged()
    envelope = shelf.tags(version)[ENVELOPE_TAG]
    files = shelf.files(version)
    shelf.store.delete_registered_model("pills")
    assert shelf.registered(files.as_uri()) == "1"
    with shelf.refused("made at another time"):
        shelf.hand_in(envelope, "1")
    with shelf.refused("the gate has not judged it"):
        shelf.promote("1")


def test_attack_a_deleted_version_does_not_come_back(shelf: Any) -> None:
    version = shelf.judged()
    shelf.store.delete_model_version("pills", version)
    with pytest.raises(MlflowException, match="not found"):
        shelf.promote(version)
    assert shelf.version() == "2", "a number is never given twice"


def test_attack_the_stages_of_mlflow_2(shelf: Any, bad: str) -> None:
    for stage, archive in itertools.product(("Production", "production", "PRODUCTION", "Staging"), (True, False)):
        with shelf.refused("does not become champion: REJECT|does not become challenger: REJECT"):
            shelf.store.transition_model_version_stage("pills", bad, stage, archive)
    assert shelf.store.get_model_version("pills", bad).current_stage == "None"


def test_attack_a_stage_is_kept_like_an_alias(shelf: Any) -> None:
    version = shelf.judged()
    shelf.store.transition_model_version_stage("pills", version, "Production", False)
    assert shelf.problems() == []
    with shelf.refused("is Production: it cannot be deleted"):
        shelf.store.delete_model_version("pills", version)
    with shelf.refused("has a Production and cannot be renamed"):
        shelf.store.rename_registered_model("pills", "other")
    shelf.store.transition_model_version_stage("pills", version, "Archived", False)
    assert [row["alias"] for row in shelf.rows(action="stage")] == ["Production", "Archived"]


def test_attack_a_prompt_is_no_way_round(shelf: Any, bad: str) -> None:
    shelf.store.create_prompt("poem", "a {{ b }}")
    shelf.store.create_prompt_version("poem", "a {{ b }}")
    with shelf.refused("poem version 1: its files"):
        shelf.store.set_prompt_alias("poem", "champion", 1)
    shelf.store.set_prompt_alias("poem", "best", 1)
    with shelf.refused("REJECT"):
        shelf.promote(bad)
    for call in (
        lambda: shelf.store.set_prompt_tag("poem", "gate.verdict", "PROMOTE"),
        lambda: shelf.store.set_prompt_version_tag("poem", 1, "gate.verdict", "PROMOTE"),
    ):
        with shelf.refused("written by the gate alone"):
            call()


def test_attack_a_model_hidden_as_a_prompt(shelf: Any, bad: str) -> None:
    """MLflow's searches, and with them the gate, would not find it or its versions any more."""
    key = "mlflow.prompt.is_prompt"
    for value in ("true", "True", "false"):
        for call in (
            lambda tag: shelf.store.set_registered_model_tag("pills", tag),
            lambda tag: shelf.store.set_model_version_tag("pills", bad, tag),
            lambda tag: shelf.store.create_model_version("pills", "file:///x", tags=[tag]),
        ):
            with shelf.refused("pills is a model, and with this tag MLflow would hide it"):
                call(ModelVersionTag(key, value))
    assert len(shelf.store.search_model_versions("name = 'pills'")) == 3
    shelf.store.create_registered_model("half", tags=[RegisteredModelTag(key, "false")])
    assert RECORD_TAG in shelf.store.get_registered_model("half").tags, "MLflow calls it a model, and so does the gate"
    with shelf.refused("half is a model"):
        shelf.store.set_registered_model_tag("half", RegisteredModelTag(key, "true"))
    shelf.store.create_prompt("poem")
    shelf.store.set_registered_model_tag("poem", RegisteredModelTag(key, "true"))


def test_attack_a_gate_service_that_was_never_there(shelf: Any) -> None:
    """The time of its tag is that of the registry's clock, whoever may write it."""
    version = shelf.judged()
    shelf.store.set_registered_model_tag("pills", RegisteredModelTag(SERVICE_SEEN_TAG, "2099-01-01 00:00:00 UTC"))
    seen = time_in(shelf.store.get_registered_model("pills").tags[SERVICE_SEEN_TAG])
    assert seen is not None
    assert abs(seen - datetime.now(UTC)) < timedelta(minutes=5)
    with shelf.refused("written by the gate alone"):
        shelf.store.delete_registered_model_tag("pills", SERVICE_SEEN_TAG)
    with shelf.refused("written by the gate alone"):
        shelf.store.set_model_version_tag("pills", version, ModelVersionTag(HISTORY_TAG, "champion"))


def test_attack_html_in_names_and_tags_is_kept_as_text(shelf: Any) -> None:
    evil = "<script>alert(1)</script>"
    version = shelf.version(tags=[ModelVersionTag("note", evil)], description=evil)
    shelf.hand_in(shelf.statement(version, figures={"top1": evil}), version)
    assert shelf.tags(version)["gate.details"] == f"top1 {evil}"
    with shelf.refused("looks like 'champion'"):
        shelf.promote(version, "Champion")
    shelf.promote(version)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_attack_a_version_that_is_no_number(shelf: Any, bad: str) -> None:
    for version in ("1; DROP TABLE model_versions", "-1", "1.0", "", "９", "99"):
        with pytest.raises(MlflowException) as caught:
            shelf.promote(version)
        assert caught.value.get_http_status_code() < 500
    assert shelf.champion() == "2"


# ---- people


def as_user(name: str | None) -> Any:
    context = flask.Flask("test").test_request_context()
    context.push()
    if name is not None:
        flask.g.mlflow_authenticated_user = name
    return context


@pytest.mark.parametrize("name", ["erin", "nobody-knows-me", None])
def test_attack_an_engineer_or_nobody_promotes(
    shelf: Any, bad: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = tmp_path / "roles.yaml"
    roles.write_text("roles_version: 1\nusers: {erin: engineer, rita: release_manager, gus: gate}\n")
    good = shelf.judged()
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, str(roles))
        context = as_user(name)
        try:
            for wish in (
                lambda: shelf.promote(good),
                lambda: shelf.promote(good, "challenger"),
                lambda: shelf.store.delete_registered_model_alias("pills", "champion"),
                lambda: shelf.store.transition_model_version_stage("pills", good, "Production", True),
                lambda: shelf.store.delete_model_version("pills", "1"),
            ):
                with shelf.refused("is for the role release_manager"):
                    wish()
            with shelf.refused("is for the role gate"):
                shelf.hand_in(shelf.statement(good), good)
            with shelf.refused("is for the role gate"):
                shelf.store.set_registered_model_tag("pills", RegisteredModelTag(SERVICE_SEEN_TAG, "now"))
            shelf.promote(good, "candidate")
        finally:
            context.pop()
        for other in ("gus", "rita"):
            context = as_user(other)
            try:
                if other == "gus":
                    with shelf.refused("is for the role release_manager; gus is gate"):
                        shelf.promote(good)
                else:
                    with shelf.refused("is for the role gate; rita is release_manager"):
                        shelf.hand_in(shelf.statement(good), good)
                    shelf.promote(good)
            finally:
                context.pop()
    assert shelf.rows(action="set", outcome="done", version=good)[0]["actor"] == "rita"
    history = history_in(shelf.tags(good)[HISTORY_TAG])
    assert (history["asked"].actor, history["champion"].actor) == (name or "anonymous", "rita")
    assert shelf.store.get_model_version("pills", good).description.endswith(" UTC, set by rita.\n")


@pytest.mark.parametrize("text", [None, "users: {rita: admin}", "users: [", "roles_version: 2"])
def test_attack_roles_that_cannot_be_read_give_nobody_anything(
    shelf: Any, text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = shelf.judged()
    path = tmp_path / "roles.yaml"
    if text is not None:
        path.write_text(text)
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, str(path))
        with shelf.refused("roles.yaml"):
            shelf.promote(version)
