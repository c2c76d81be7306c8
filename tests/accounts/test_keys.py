"""API keys: what is accepted, what is kept, what survives."""

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.accounts.keys import Keys, new_secret
from stockade.errors import Conflict, Fault, NotFound


def test_first_start_makes_one_admin_key_and_a_second_start_none(tmp_path: Path) -> None:
    secret = Keys.load(tmp_path).ensure_admin()
    assert secret is not None
    again = Keys.load(tmp_path)
    assert again.ensure_admin() is None
    actor = again.verify(secret)
    assert actor is not None
    assert actor.id == again.all()[0].id


def test_a_key_is_prefixed_and_carries_256_bits() -> None:
    secret = new_secret()
    assert secret.startswith("sk_")
    assert len(bytes.fromhex(secret.removeprefix("sk_"))) == 32


def test_the_file_holds_no_key_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    secret = Keys.load(tmp_path).add("ci")
    text = (tmp_path / "keys.json").read_text()
    assert secret not in text
    assert secret.removeprefix("sk_")[8:-8] not in text
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


@given(st.text())
def test_what_is_no_key_is_refused(presented: str) -> None:
    keys = Keys()
    keys.add("one")
    assert keys.verify(presented) is None


def test_a_lone_surrogate_is_no_key() -> None:
    keys = Keys()
    keys.add("one")
    assert keys.verify("sk_\udcff") is None


def test_a_preset_key_is_valid_but_never_written(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path, preset="chosen-by-the-operator")
    assert keys.ensure_admin() is None
    assert keys.verify("chosen-by-the-operator") is not None
    assert keys.verify("") is None
    keys.add("other")
    assert Keys.load(tmp_path).verify("chosen-by-the-operator") is None


def test_a_name_is_given_once(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path)
    keys.add("ci")
    with pytest.raises(Conflict):
        keys.add("ci")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2, "keys": []}', '{"format": 1, "keys": [{"id": 1}]}'])
def test_a_damaged_file_is_reported_by_name_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(Fault, match=r"keys\.json"):
        Keys.load(tmp_path)
    assert path.read_text() == text


def test_the_file_is_versioned(tmp_path: Path) -> None:
    Keys.load(tmp_path).ensure_admin()
    assert json.loads((tmp_path / "keys.json").read_text())["format"] == 1


def test_a_key_can_be_kept_from_templates_and_let_to_them_again(tmp_path: Path) -> None:
    secret = Keys.load(tmp_path).add("careful", templates=False)
    other = Keys.load(tmp_path).add("other")
    kept = Keys.load(tmp_path)
    assert [actor and actor.templates for actor in map(kept.verify, (secret, other))] == [False, True]
    kept.set("careful", templates=True)
    kept.set(kept.all()[1].id, templates=False)
    again = Keys.load(tmp_path)
    assert [actor and actor.templates for actor in map(again.verify, (secret, other))] == [True, False]


def test_a_key_that_is_not_kept_cannot_be_changed(tmp_path: Path) -> None:
    keys = Keys.load(tmp_path, preset="chosen-by-the-operator")
    keys.add("ci")
    for name in ("nobody", "preset", "STOCKADE_API_KEY"):
        with pytest.raises(NotFound, match="known: ci"):
            keys.set(name, templates=False)


def test_keys_of_a_version_without_templates_are_still_read(tmp_path: Path) -> None:
    secret = Keys.load(tmp_path).add("old", templates=False)
    path = tmp_path / "keys.json"
    document = json.loads(path.read_text())
    for entry in document["keys"]:
        del entry["templates"]
    path.write_text(json.dumps(document))
    actor = Keys.load(tmp_path).verify(secret)
    assert actor is not None
    assert actor.templates
