"""API keys: their format, their owners, and where they are loaded from."""

from pathlib import Path

import pytest
from roost.server.http.auth import ApiKeys, load_access
from roost.server.settings import SettingsError, load_settings


def test_key_has_an_owner() -> None:
    keys = ApiKeys(["alice:a-1", "bob:b.2==", "bob:b3", "plain"])
    assert keys.owners == ("alice", "bob", "default")
    assert [keys.owner([key]) for key in (b"a-1", b"b.2==", b"b3", b"plain")] == ["alice", "bob", "bob", "default"]
    assert keys.owner([b"", b"b3"]) == "bob"
    assert [keys.owner([key]) for key in (b"", b"a-2", b"alice:a-1", b"alice", b"\xff")] == [None] * 5


def test_no_keys_match_nothing() -> None:
    assert not ApiKeys()
    assert ApiKeys().owner([b""]) is None


def test_only_hashes_of_keys_are_kept() -> None:
    assert "sesame" not in repr(vars(ApiKeys(["sesame"])))


@pytest.mark.parametrize("entry", ["", ":k", "a:", "a:b:c", "a b", "é", "a b:c", "x" * 65 + ":k", "k\n"])
def test_error_does_not_repeat_a_malformed_key(entry: str) -> None:
    with pytest.raises(SettingsError, match=r"^api_key: entry 2 must be KEY or NAME:KEY") as caught:
        ApiKeys(["good", entry])
    assert not entry.strip() or entry not in str(caught.value).replace("letters", "")


def test_two_owners_cannot_have_the_same_key() -> None:
    with pytest.raises(SettingsError, match="entry 2 repeats the key of alice"):
        ApiKeys(["alice:k", "bob:k"])


def test_keys_are_loaded_from_flags_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\n\n  bob:b \n")
    access = load_access(load_settings({"api_key": ["alice:a"], "api_key_file": str(path)}), None)
    assert access.keys.owners == ("alice", "bob")
    assert not access.admin_keys


@pytest.mark.parametrize(("content", "reason"), [("# none\n", "has no key"), ("a b\n", "entry 1 must be")])
def test_key_file_without_a_key_is_an_error(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(SettingsError, match=rf"^api_key_file .*{reason}"):
        load_access(load_settings({"api_key_file": str(path)}), None)


def test_missing_key_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"api_key_file .*: cannot be read"):
        load_access(load_settings({"api_key_file": str(tmp_path / "no")}), None)


def test_environment_variables_hold_several_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_API_KEY", "alice:a, bob:b")
    monkeypatch.setenv("ROOST_ALLOW_ORIGIN", "https://a.example https://b.example")
    access = load_access(load_settings({}), None)
    assert access.keys.owners == ("alice", "bob")
    assert access.browsers.origins.names == ("https://a.example", "https://b.example")


def test_empty_key_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_API_KEY", " ")
    with pytest.raises(SettingsError, match=r"^ROOST_API_KEY must not be empty$"):
        load_settings({})
