"""Settings among the chart's values: their schema follows from the server's, and their values reach it unchanged."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import load, program, run, templated
from kubernetes_objects import CHART, DEPLOY, container, objects
from roost.server.settings import all_settings
from serve_settings import settings_of

chart_values = load("chart_values", DEPLOY.parent / "tools")
HELM = "python3 dev.py test-deploy brings it"


def test_the_schema_has_the_settings_of_the_server() -> None:
    written = (CHART / "values.schema.json").read_text()
    assert written == chart_values.schema_text(), "write it anew: python tools/chart_values.py"
    names = json.loads(written)["properties"]["settings"]["properties"].keys()
    assert names | chart_values.DECIDED_BY_THE_CHART == all_settings().model_fields.keys()
    assert not names & chart_values.DECIDED_BY_THE_CHART


def test_the_page_has_the_values_of_the_chart() -> None:
    assert chart_values.PAGE.read_text() == chart_values.page_text(), "write it anew: python tools/chart_values.py"


def test_the_schema_and_the_values_have_the_same_names() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["properties"].keys() - {"global", "enabled"} == defaults.keys()


def test_comments_belong_to_the_key_below() -> None:
    text = "# Of all.\n\n# One\n# value.\na:\n  # Another.\n  b: 1\n  c: 2\nd: {}\n"
    about, before = chart_values.read_comments(text)
    assert about == {"a": "One value.", "a.b": "Another.", "a.c": "", "d": ""}
    assert before == {"a": "Of all.", "a.b": "", "a.c": "", "d": ""}
    assert dict(chart_values.leaves({"a": {"b": 1}, "d": {}})) == {"a": ..., "a.b": 1, "d": {}}


def values(folder: Path, settings: str) -> list[str]:
    """Returns helm's arguments for a file as a person writes it."""
    path = folder / "values.yaml"
    path.write_text(f"settings: {{{settings}}}\n")
    return ["--values", str(path)]


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("written", "name", "value"),
    [
        ("max_body_bytes: 8388608", "max_body_bytes", 8388608),
        ("max_queue_tokens: 1000000", "max_queue_tokens", 1000000),
        ("seed: 4294967295", "seed", 4294967295),
        ("store_gib: 1234567.5", "store_gib", 1234567.5),
        ("request_timeout: off", "request_timeout", None),
        ("request_timeout: 'off'", "request_timeout", None),
        ("access_log: off", "access_log", False),
        ("strict: true", "strict", True),
        ("slots: auto", "slots", None),
        ("itl_target_ms: 0.5", "itl_target_ms", 0.5),
        (
            "allow_origin: [https://a.example, https://b.example]",
            "allow_origin",
            ("https://a.example", "https://b.example"),
        ),
        ("prefill_chunk: null", "prefill_chunk", 512),
    ],
)
def test_a_setting_reaches_the_server_as_written(
    written: str, name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = objects(templated(values(tmp_path, written)))
    assert getattr(settings_of(container(made), monkeypatch), name) == value


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("max_queu: 64", "at '/settings': additional properties 'max_queu' not allowed"),
        ("port: 80", "at '/settings': additional properties 'port' not allowed"),
        ("state_key: 0123456789abcdef", "at '/settings': additional properties 'state_key' not allowed"),
        ("max_queue: '64'", "at '/settings/max_queue': got string, want null or integer"),
        ("max_queue: 1.5", "at '/settings/max_queue': got number, want null or integer"),
        ("strict: 1", "at '/settings/strict': got number, want null or boolean"),
        ("slots: two", "at '/settings/slots'"),
        ("quantize: int2", "at '/settings/quantize': value must be one of 'int8'"),
        ("max_queue: off", "at '/settings/max_queue': got boolean"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(written: str, said: str, tmp_path: Path) -> None:
    helm = program("helm", HELM)
    assert said in run(helm, "template", "roost", str(CHART), *values(tmp_path, written), fails=True)
