"""What is in deploy/, read."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CHART = DEPLOY / "chart"
GROUPS = ("tpu-v5e-2x4-multi-host",)
"""Presets of several hosts."""

PRESETS = ("cpu", "nvidia", "tpu-v5e-1x1", "tpu-v5e-2x2", "tpu-v6e-1x1", "tpu-v6e-2x2", *GROUPS)


def objects(text: str) -> list[dict[str, Any]]:
    """Those of a stream of YAML documents."""
    return [each for each in yaml.safe_load_all(text) if each]


def committed(preset: str) -> list[dict[str, Any]]:
    return objects((DEPLOY / "manifests" / preset / "roost.yaml").read_text())


def one(kind: str, among: list[dict[str, Any]]) -> dict[str, Any]:
    found = [each for each in among if each["kind"] == kind]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def pod_templates(among: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """That of the Pods that serve; behind it that of their followers, where there are several hosts."""
    (found,) = (each for each in among if each["kind"] in ("Deployment", "LeaderWorkerSet"))
    if found["kind"] == "Deployment":
        return [found["spec"]["template"]]
    group = found["spec"]["leaderWorkerTemplate"]
    return [group["leaderTemplate"], group["workerTemplate"]]


def pod(among: list[dict[str, Any]]) -> dict[str, Any]:
    """The spec of the Pods that serve."""
    return pod_templates(among)[0]["spec"]


def container(among: list[dict[str, Any]]) -> dict[str, Any]:
    (only,) = pod(among)["containers"]
    return dict(only)


def alert_rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"] for rule in group["rules"]
    ]


def dashboard() -> dict[str, Any]:
    return json.loads((CHART / "files/dashboard.json").read_text())


def expressions() -> Iterator[str]:
    """All PromQL of the alerts and the dashboard, whose variables have been filled in."""
    yield from (rule["expr"] for rule in alert_rules())
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m").replace("$namespace", ".*").replace("$pod", ".*")


def metric_names(expression: str) -> set[str]:
    """The metrics that an expression asks for: names that no parenthesis follows, outside of labels and strings."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"|\b(by|without)\s*\([^)]*\)", " ", expression)
    return set(re.findall(r"\b[a-z_:][a-z0-9_:]+\b(?!\s*\()", bare)) - {"and", "or", "unless"}
