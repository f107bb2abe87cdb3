"""The configuration of a gateway's endpoint picker, against what the picker takes and what Roost does."""

from copy import deepcopy
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_objects import CHART
from picker_schema import SCHEMA
from roost.engine.types.config import PREFILL_BLOCK

CONFIG: dict[str, Any] = yaml.safe_load((CHART / "files" / "picker.yaml").read_text())


def plugin(kind: str, config: dict[str, Any] = CONFIG) -> dict[str, Any]:
    (found,) = (each for each in config["plugins"] if each["type"] == kind)
    return dict(found)


def test_the_picker_takes_it() -> None:
    jsonschema.validate(CONFIG, SCHEMA)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("prefix-cache-scorer", {"autoTune": False}),
        ("prefix-cache-scorer", {"blockSizeTokens": 64}),
        ("approx-prefix-cache-producer", {"blockSizeToken": 64}),
        ("queue-scorer", {"weight": 2}),
    ],
)
def test_a_parameter_of_another_plugin_is_refused(kind: str, parameters: dict[str, Any]) -> None:
    config = deepcopy(CONFIG)
    next(each for each in config["plugins"] if each["type"] == kind)["parameters"] = parameters
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, SCHEMA)


def test_an_unknown_plugin_and_the_old_group_are_refused() -> None:
    for wrong in (
        {**CONFIG, "plugins": [{"type": "shortest-queue"}]},
        {**CONFIG, "apiVersion": "inference.networking.x-k8s.io/v1alpha1"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_profiles_refer_to_plugins_that_there_are() -> None:
    (profile,) = CONFIG["schedulingProfiles"]
    names = [each.get("name", each["type"]) for each in CONFIG["plugins"]]
    assert len(set(names)) == len(names)
    assert {each["pluginRef"] for each in profile["plugins"]} <= set(names)
    assert plugin("single-profile-handler")  # of which there has to be one
    scorers = [each["pluginRef"] for each in profile["plugins"] if each["pluginRef"].endswith("scorer")]
    assert all("weight" in each for each in profile["plugins"] if each["pluginRef"] in scorers)
    # A scorer of prefixes scores nothing without a producer of its data.
    assert ("prefix-cache-scorer" in scorers) == ("approx-prefix-cache-producer" in names)


def test_prompts_are_compared_in_roosts_own_blocks() -> None:
    parameters = plugin("approx-prefix-cache-producer")["parameters"]
    assert parameters["blockSizeTokens"] == PREFILL_BLOCK
    assert parameters["maxPrefixTokensToMatch"] % PREFILL_BLOCK == 0
