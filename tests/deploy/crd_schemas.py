"""What other projects' controllers accept, as far as the chart writes it; fields that are not here are refused.

Each is our own summary, of the API's documentation, and says less than the definition that is installed in a cluster.
"""

from typing import Any


def thing(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """A closed object."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [*required],
        "properties": {**required, **(optional or {})},
    }


def things(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": item}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
DURATION = {"type": "string", "pattern": "^[0-9]+(s|m|h)$"}
WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
LABELS = {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string", "maxLength": 63}}
SELECTOR = thing({"matchLabels": LABELS})
POD_TEMPLATE = thing({"metadata": thing({"labels": LABELS}, {"annotations": WORDS}), "spec": {"type": "object"}})
"""What is in the spec, is for the validator of Kubernetes' own objects."""

COUNT_OR_SHARE = {"anyOf": [COUNT, {"type": "string", "pattern": "^(100|[0-9]{1,2})%$"}]}
TLS = thing({"insecureSkipVerify": {"type": "boolean"}})
RULES = thing(
    {
        "groups": things(
            thing(
                {
                    "name": TEXT,
                    "rules": things(
                        thing({"alert": TEXT, "expr": TEXT}, {"for": DURATION, "labels": WORDS, "annotations": WORDS})
                    ),
                },
                {"interval": DURATION},
            )
        )
    }
)

SPECS: dict[tuple[str, str], dict[str, Any]] = {
    ("inference.networking.k8s.io/v1", "InferencePool"): thing(
        {
            "selector": SELECTOR,
            "targetPorts": {**things(thing({"number": PORT})), "maxItems": 8},
            "endpointPickerRef": thing(
                {"name": TEXT},
                {
                    "group": {"type": "string"},
                    "kind": TEXT,
                    "port": thing({"number": PORT}),
                    "failureMode": {"enum": ["FailOpen", "FailClose"]},
                },
            ),
        }
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): thing(
        {
            "parentRefs": things(
                thing(
                    {"name": TEXT}, {"group": TEXT, "kind": TEXT, "namespace": TEXT, "sectionName": TEXT, "port": PORT}
                )
            ),
            "rules": things(
                thing(
                    {
                        "backendRefs": things(
                            thing({"name": TEXT}, {"group": TEXT, "kind": TEXT, "port": PORT, "weight": COUNT})
                        )
                    },
                    {
                        "name": TEXT,
                        "matches": things({"type": "object"}),
                        "filters": things({"type": "object"}),
                        "timeouts": thing({}, {"request": DURATION, "backendRequest": DURATION}),
                    },
                )
            ),
        },
        {"hostnames": things(TEXT)},
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): thing(
        {
            "scaleTargetRef": thing({"name": TEXT}, {"apiVersion": TEXT, "kind": TEXT, "envSourceContainerName": TEXT}),
            "triggers": things(
                thing(
                    {"type": TEXT, "metadata": WORDS},
                    {"name": TEXT, "metricType": {"enum": ["AverageValue", "Value", "Utilization"]}},
                )
            ),
        },
        {
            "pollingInterval": COUNT,
            "cooldownPeriod": COUNT,
            "idleReplicaCount": COUNT,
            "minReplicaCount": COUNT,
            "maxReplicaCount": COUNT,
            "fallback": thing(
                {"failureThreshold": COUNT, "replicas": COUNT},
                {
                    "behavior": {
                        "enum": ["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]
                    }
                },
            ),
            "advanced": thing(
                {},
                {
                    "restoreToOriginalReplicaCount": {"type": "boolean"},
                    "horizontalPodAutoscalerConfig": thing({}, {"name": TEXT, "behavior": {"type": "object"}}),
                },
            ),
        },
    ),
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): thing(
        {
            "leaderWorkerTemplate": thing(
                {"workerTemplate": POD_TEMPLATE},
                {
                    "leaderTemplate": POD_TEMPLATE,
                    "size": {"type": "integer", "minimum": 1},
                    "restartPolicy": {
                        "enum": ["Default", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]
                    },
                },
            )
        },
        {
            "replicas": {"type": "integer", "minimum": 0, "maximum": 1_000_000},
            "startupPolicy": {"enum": ["LeaderCreated", "LeaderReady"]},
            "networkConfig": thing({"subdomainPolicy": {"enum": ["Shared", "UniquePerReplica"]}}),
            "rolloutStrategy": thing(
                {"type": {"const": "RollingUpdate"}},
                {
                    "rollingUpdateConfiguration": thing(
                        {}, {"partition": COUNT, "maxUnavailable": COUNT_OR_SHARE, "maxSurge": COUNT_OR_SHARE}
                    )
                },
            ),
        },
    ),
    ("monitoring.googleapis.com/v1", "PodMonitoring"): thing(
        {
            "selector": SELECTOR,
            "endpoints": things(
                thing(
                    {"port": {"type": ["string", "integer"]}, "interval": DURATION},
                    {"path": TEXT, "scheme": {"enum": ["http", "https"]}, "timeout": DURATION, "tls": TLS},
                )
            ),
        },
        {"targetLabels": {"type": "object"}, "limits": {"type": "object"}},
    ),
    ("monitoring.googleapis.com/v1", "Rules"): RULES,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): thing(
        {
            "selector": SELECTOR,
            "endpoints": things(
                thing(
                    {"port": TEXT},
                    {
                        "path": TEXT,
                        "interval": DURATION,
                        "scrapeTimeout": DURATION,
                        "scheme": {"enum": ["http", "https"]},
                        "tlsConfig": TLS,
                    },
                )
            ),
        },
        {"jobLabel": TEXT, "namespaceSelector": {"type": "object"}, "targetLabels": {"type": "array"}},
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): RULES,
}


def schema(api_version: str, kind: str) -> dict[str, Any]:
    """For a whole object.

    Raises:
      KeyError: there is none for this kind.
    """
    metadata = thing({"name": TEXT, "labels": LABELS}, {"namespace": TEXT, "annotations": WORDS})
    return thing(
        {
            "apiVersion": {"const": api_version},
            "kind": {"const": kind},
            "metadata": metadata,
            "spec": SPECS[api_version, kind],
        }
    )
