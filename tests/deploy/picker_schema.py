"""What the endpoint picker of llm-d-router 0.10.0 accepts as its configuration; fields that are not here are refused.

It decodes its `EndpointPickerConfig` strictly, and the parameters of each plugin too. This is our own summary of the
types of that version, with the plugins that `picker.yaml` uses.
"""

from typing import Any, Final

from crd_schemas import COUNT, TEXT, thing, things

NAME: Final = {"type": "string"}

PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "single-profile-handler": {},
    "queue-scorer": {},
    "kv-cache-utilization-scorer": {},
    "max-score-picker": {"maxNumOfEndpoints": COUNT},
    "prefix-cache-scorer": {
        "prefixMatchInfoProducerName": NAME,
        "matchLengthWeight": {"type": "number", "minimum": 0, "maximum": 1},
        "matchLengthScaleTokens": COUNT,
    },
    "approx-prefix-cache-producer": {
        "autoTune": {"type": "boolean"},
        "blockSizeTokens": {"type": "integer", "minimum": 64},  # the picker raises fewer to 64
        "maxPrefixTokensToMatch": COUNT,
        "lruCapacityPerServer": COUNT,
    },
}
"""Parameters by plugin, without those that are deprecated."""

_PLUGINS: Final = [
    thing({"type": {"const": kind}}, {"name": NAME, "parameters": thing({}, parameters)})
    for kind, parameters in PARAMETERS.items()
]

SCHEMA: Final = thing(
    {
        "apiVersion": {"const": "llm-d.ai/v1alpha1"},
        "kind": {"const": "EndpointPickerConfig"},
        "plugins": things({"oneOf": _PLUGINS}),
        "schedulingProfiles": things(
            thing({"name": TEXT, "plugins": things(thing({"pluginRef": TEXT}, {"weight": {"type": "number"}}))})
        ),
    }
)
