"""Sources of settings, their precedence and their errors."""

from pathlib import Path
from typing import Any

import pytest
from roost.engine import ConfigError, Speculation
from roost.server.assembly.service import engine_config
from roost.server.settings import SettingsError, all_settings, flag_name, load_settings
from roost.server.settings.fields import Group, mesh_sizes
from roost.server.settings.reference import setting_reference, settings_reference


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in all_settings().model_fields:
        monkeypatch.delenv(f"ROOST_{name.upper()}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "roost.toml"
    path.write_text('port = 1\nmax_queue = 1\nslots = 1\nmodel = "file"\n')
    return path


def test_defaults() -> None:
    settings = load_settings({})
    assert (settings.model, settings.host, settings.port) == ("demo", "127.0.0.1", 8000)
    assert (settings.slots, settings.max_queue, settings.prefill_chunk) == (None, 256, 512)


def test_a_flag_beats_the_environment_and_that_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_PORT", "2")
    monkeypatch.setenv("ROOST_MAX_QUEUE", "2")
    settings = load_settings({"config": file, "port": 3})
    assert (settings.port, settings.max_queue, settings.slots) == (3, 2, 1)
    assert settings.model == "file"


def test_the_file_may_be_named_by_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_CONFIG", str(file))
    assert load_settings({}).port == 1


@pytest.mark.parametrize(("given", "slots"), [("auto", None), ("4", 4), (4, 4)])
def test_slots_are_a_number_or_auto(given: Any, slots: int | None) -> None:
    assert load_settings({"slots": given}).slots == slots


@pytest.mark.parametrize(("given", "seconds"), [("off", None), ("false", None), ("0.5", 0.5), (60, 60.0)])
def test_requests_have_a_time_or_none(given: Any, seconds: float | None) -> None:
    assert load_settings({"request_timeout": given}).request_timeout == seconds


@pytest.mark.parametrize("name", ["compile_cache", "state_cache_dir"])
@pytest.mark.parametrize(("given", "taken"), [("auto", "auto"), ("off", "off"), ("/x", Path("/x"))])
def test_a_cache_is_kept_in_a_folder(name: str, given: str, taken: Any) -> None:
    assert getattr(load_settings({name: given}), name) == taken


@pytest.mark.parametrize(
    ("given", "sizes"),
    [("auto", None), ("data=2,model=4", (2, 4)), ("model=4, data=2", (2, 4)), ("model=3", (1, 3)), ("data=2", (2, 1))],
)
def test_a_mesh_has_two_sizes(given: str, sizes: tuple[int, int] | None) -> None:
    assert mesh_sizes(load_settings({"mesh": given}).mesh) == sizes


@pytest.mark.parametrize("name", ["compile_cache", "state_cache_dir"])
@pytest.mark.parametrize("value", ["gs://bucket/folder", Path("gs://bucket/folder"), "s3://bucket"])
def test_a_bucket_is_not_a_folder(name: str, value: str | Path) -> None:
    """A folder that a bucket is mounted on is one, whatever its name."""
    flag = flag_name(name)
    with pytest.raises(SettingsError, match=rf"\A{flag} must be a folder; mount the bucket, as by GCS FUSE, .*bucket"):
        load_settings({name: value})
    assert getattr(load_settings({name: "/mnt/gs:/bucket"}), name) == Path("/mnt/gs:/bucket")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65536),
        ("slots", "many"),
        ("dtype", "half"),
        ("quantize", "int2"),
        ("seed", -1),
        ("request_timeout", "never"),
        ("request_timeout", 0),
        ("drain_timeout", "inf"),
        ("drain_lag", -1),
        ("api_key", ""),
        ("served_model_name", ""),
        ("mesh", "rows=2"),
        ("mesh", "data=0"),
        ("mesh", "model=2,model"),
        ("coordinator", ":8482"),
    ],
)
def test_a_bad_value_is_named_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"\A{flag_name(name)} must .*\Z"):
        load_settings({name: value})


def test_numbers_and_keys_are_described_as_such() -> None:
    with pytest.raises(SettingsError, match=r"got a number that is not finite\Z"):
        load_settings({"drain_timeout": float("inf")})
    with pytest.raises(SettingsError, match=r"\A--state-key must have at least 16 characters\Z"):
        load_settings({"state_key": "short"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slotz = 4\nport = 1\nhots = 'x'", r"hots \(did you mean host\?\), slotz \(did you mean slots\?\)"),
        ("max-queue = 4", r"unknown setting max-queue \(did you mean max_queue\?\)"),
        ("Slots = 4", r"unknown setting Slots \(did you mean slots\?\)"),
        ("[server]\nport = 1", "unknown setting server"),
        ("weather = 'fine'", r"unknown setting weather\Z"),
        ("port = ", "not valid TOML"),
        ("config = 'other.toml'", "unknown setting config"),
        ("port = 'x'", r'\Aconfig .*roost\.toml: port must be a whole number, got "x"\Z'),
        ("slots = 0", r"\Aconfig .*roost\.toml: slots must be at least 1, got 0\Z"),
        ("strict = 'perhaps'", r'roost\.toml: strict must be true or false, got "perhaps"\Z'),
        ("mesh = {data = 2}", r"roost\.toml: mesh must be a string"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "roost.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings({"config": path})


def test_an_error_names_the_place_that_the_value_comes_from(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("slots = 0\nmax_queue = 0")
    monkeypatch.setenv("ROOST_MAX_QUEUE", "-1")
    with pytest.raises(SettingsError) as raised:
        load_settings({"config": file, "port": "70000"})
    assert str(raised.value) == (
        "--port must be at most 65535, got 70000; "
        f"config {file}: slots must be at least 1, got 0; "
        "ROOST_MAX_QUEUE must be at least 1, got -1"
    )


def test_an_error_about_two_settings_names_both_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_SSL_KEYFILE", "key")
    with pytest.raises(SettingsError, match=r"\AROOST_SSL_KEYFILE needs --ssl-certfile\Z"):
        load_settings({})


def test_the_engines_errors_name_the_place_too(file: Path) -> None:
    file.write_text("prefill_chunk = 65")
    with pytest.raises(ConfigError, match=rf"\Aconfig {file}: prefill_chunk must be a multiple of 64"):
        engine_config(load_settings({"config": file}))


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("SLOTZ", "SLOTS"), ("APIKEY", "API_KEY")],
)
def test_a_misspelt_variable_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, meant: str) -> None:
    """A lost key would leave the server open."""
    monkeypatch.setenv(f"ROOST_{variable}", "x")
    with pytest.raises(SettingsError, match=rf"\AROOST_{variable} is unknown; did you mean ROOST_{meant}\?\Z"):
        load_settings({})


def test_other_variables_cause_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_WEATHER", "fine")
    monkeypatch.setenv("ROOSTER_SLOTZ", "1")
    (warning,) = load_settings({}).warnings
    assert warning.startswith("ROOST_WEATHER is ignored: there is no such setting")


def test_the_variables_of_a_kubernetes_service_called_roost_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service called roost-admin sets a variable with a setting's name, too."""
    for name in ("ROOST", "ROOST_ADMIN"):
        monkeypatch.setenv(f"{name}_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv(f"{name}_SERVICE_PORT", "8000")
        monkeypatch.setenv(f"{name}_SERVICE_PORT_HTTP", "8000")
        monkeypatch.setenv(f"{name}_PORT", "tcp://10.0.0.1:8000")
        monkeypatch.setenv(f"{name}_PORT_8000_TCP", "tcp://10.0.0.1:8000")
        monkeypatch.setenv(f"{name}_PORT_8000_TCP_PROTO", "tcp")
        monkeypatch.setenv(f"{name}_PORT_8000_TCP_PORT", "8000")
        monkeypatch.setenv(f"{name}_PORT_8000_TCP_ADDR", "10.0.0.1")
    settings = load_settings({})
    assert (settings.port, settings.admin_port) == (8000, None)
    assert not settings.warnings
    assert load_settings({"port": 9000}).port == 9000


def test_an_address_is_ignored_as_a_port_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_COORDINATOR", "tcp://first:8482")
    with pytest.raises(SettingsError, match=r"\AROOST_COORDINATOR must match"):
        load_settings({})


@pytest.mark.parametrize("name", ["api_key", "admin_key", "state_key", "store"])
def test_errors_never_show_a_secret(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ROOST_{name.upper()}", "")
    with pytest.raises(SettingsError, match=rf"\AROOST_{name.upper()} must"):
        load_settings({})
    monkeypatch.setenv(f"ROOST_{name.upper()}", "topsecret")
    monkeypatch.setenv("ROOST_SLOTS", "0")
    with pytest.raises(SettingsError) as raised:
        load_settings({})
    assert "topsecret" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.toml: cannot be read"):
        load_settings({"config": tmp_path / "nothing.toml"})


def test_the_key_is_not_shown() -> None:
    assert "sesame" not in repr(load_settings({"api_key": ["sesame"]}))


def test_the_reference_describes_every_setting() -> None:
    reference = settings_reference()
    assert {each.name for each in reference} == set(all_settings().model_fields)
    assert all(each.help.endswith(".") for each in reference)
    groups = [each.group for each in reference]
    assert groups == sorted(groups, key=lambda group: list(Group).index(Group(group)))


@pytest.mark.parametrize(
    ("name", "kind", "metavar", "default"),
    [
        ("model", str, "MODEL", "demo"),
        ("port", int, None, "8000"),
        ("admin_port", int, None, ""),
        ("slots", str, "auto|N", "auto"),
        ("strict", bool, None, ""),
        ("access_log", str, "on|off", "on"),
        ("api_key", list[str], "[NAME:]KEY", ""),
        ("state_key", str, "KEY", ""),
        ("state_cache_dir", str, "DIR|off", "beside the file of an SQLite --store"),
        ("compile_cache", str, "DIR|off", "the user's cache folder"),
        ("drain_timeout", float, "SECONDS", "10"),
    ],
)
def test_a_setting_has_one_description(name: str, kind: Any, metavar: str | None, default: str) -> None:
    setting = setting_reference(name)
    assert (setting.flag, setting.variable) == (flag_name(name), f"ROOST_{name.upper()}")
    assert (setting.kind, setting.metavar, setting.default) == (kind, metavar, default)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("null", None),
        ('{"method": "ngram"}', Speculation(7, 2, 5)),
        ({"method": "ngram", "num_speculative_tokens": 3}, Speculation(3, 2, 5)),
        ('{"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 4}', Speculation(7, 1, 4)),
    ],
)
def test_speculation_is_spelt_as_vllm_spells_it(given: Any, expected: Speculation | None) -> None:
    assert engine_config(load_settings({"speculative_config": given})).speculation == expected


def test_speculation_is_read_from_a_variable_and_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "roost.toml"
    path.write_text('[speculative_config]\nmethod = "ngram"\nnum_speculative_tokens = 2\n')
    assert engine_config(load_settings({"config": path})).speculation == Speculation(2)
    monkeypatch.setenv("ROOST_SPECULATIVE_CONFIG", '{"method": "ngram", "num_speculative_tokens": 4}')
    assert engine_config(load_settings({"config": path})).speculation == Speculation(4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ngram", 'must be JSON, such as {"method": "ngram"}'),
        ("[]", 'must be an object with "method": "ngram", or null'),
        ('{"method": "eagle"}', 'must be an object with "method": "ngram", or null'),
        ('{"num_speculative_tokens": 4}', 'must be an object with "method": "ngram", or null'),
        ('{"method": "ngram", "model": "x"}', "has an unknown key 'model'"),
        (
            '{"method": "ngram", "num_speculative_tokens": "4"}',
            "num_speculative_tokens must be a whole number, got '4'",
        ),
        ('{"method": "ngram", "num_speculative_tokens": 0}', "num_speculative_tokens must be from 1 to 31, got 0"),
        (
            '{"method": "ngram", "prompt_lookup_min": 6}',
            "prompt_lookup_min must be from 1 to prompt_lookup_max (5), got 6",
        ),
    ],
)
def test_a_wrong_speculation_is_one_line(given: str, message: str) -> None:
    with pytest.raises((ConfigError, SettingsError)) as error:
        engine_config(load_settings({"speculative_config": given}))
    assert str(error.value).startswith("--speculative-config")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
