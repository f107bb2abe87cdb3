"""A chart of charts that has two models: the chart twice, under an alias each."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import program, run
from kubernetes_objects import CHART, container, objects, one, pod_templates

pytestmark = pytest.mark.deploy

HELM = "python3 dev.py test-deploy brings it"
ALIASES = ("small", "large")


def rendered(
    folder: Path, release: str, values: dict[str, Any], installed_with: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Returns the objects of an umbrella chart.

    Args:
      folder: An empty folder.
      release: Name of the release.
      values: Values of each alias, in the umbrella's own file.
      installed_with: More values of each alias, given to helm.
    """
    charts = folder / "charts"
    shutil.copytree(CHART, charts / "roost")
    dependencies = [
        {"name": "roost", "version": "0.1.0", "alias": alias, "condition": f"{alias}.enabled"} for alias in ALIASES
    ]
    chart = {"apiVersion": "v2", "name": "umbrella", "version": "1.0.0", "dependencies": dependencies}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(chart))
    (folder / "values.yaml").write_text(yaml.safe_dump({alias: {"enabled": True, **values} for alias in ALIASES}))
    more = folder / "more.yaml"
    more.write_text(yaml.safe_dump({alias: installed_with or {} for alias in ALIASES}))
    return objects(run(program("helm", HELM), "template", release, str(folder), "--values", str(more)))


def test_two_aliases_share_no_name_and_no_selector(tmp_path: Path) -> None:
    everything = {
        "inferencePool": {"enabled": True},
        "autoscaling": {"kind": "keda"},
        "monitoring": {"kind": "podMonitoring", "alerts": True, "dashboard": True},
    }
    made = rendered(tmp_path, "fleet", everything)
    names = [(each["kind"], each["metadata"]["name"]) for each in made]
    assert len(set(names)) == len(names)
    assert {name for kind, name in names if kind == "Deployment"} == {"fleet-small", "fleet-large"}
    deployments = [each for each in made if each["kind"] == "Deployment"]
    selectors = [each["spec"]["selector"]["matchLabels"] for each in deployments]
    for deployment, other in zip(deployments, reversed(selectors), strict=True):
        assert not other.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    pickers = {each["spec"]["endpointPickerRef"]["name"] for each in made if each["kind"] == "InferencePool"}
    assert pickers == {"fleet-small-picker", "fleet-large-picker"}
    for each in (each for each in made if each["kind"] in ("Service", "InferencePool")):
        selector = each["spec"]["selector"].get("matchLabels", each["spec"]["selector"])
        owners = [one["metadata"]["name"] for one in deployments if selector.items() <= labels(one).items()]
        assert owners == [each["metadata"]["name"].removesuffix("-metrics")]


def labels(deployment: dict[str, Any]) -> dict[str, str]:
    return deployment["spec"]["template"]["metadata"]["labels"]


def test_references_are_to_the_aliass_own_objects(tmp_path: Path) -> None:
    made = rendered(tmp_path, "fleet", {"autoscaling": {"kind": "hpa"}})
    for alias in ALIASES:
        own = [each for each in made if each["metadata"]["name"].startswith(f"fleet-{alias}")]
        assert one("HorizontalPodAutoscaler", own)["spec"]["scaleTargetRef"]["name"] == f"fleet-{alias}"
        assert pod_templates(own)[0]["spec"]["serviceAccountName"] == f"fleet-{alias}"
        assert container(own)["name"] == "roost"


def test_null_takes_a_key_away_from_an_alias(tmp_path: Path) -> None:
    made = rendered(tmp_path, "fleet", {}, {"podSecurityContext": {"runAsUser": None, "fsGroup": None}})
    for deployment in (each for each in made if each["kind"] == "Deployment"):
        assert not deployment["spec"]["template"]["spec"]["securityContext"].keys() & {"runAsUser", "fsGroup"}


@pytest.mark.parametrize(
    ("release", "given", "name"),
    [
        ("roost", {}, "roost"),
        ("my-roost", {}, "my-roost"),
        ("gemma", {}, "gemma-roost"),
        ("gemma", {"nameOverride": "2b"}, "gemma-2b"),
        ("gemma", {"fullnameOverride": "chat"}, "chat"),
        ("r" * 53, {"nameOverride": "n" * 40}, f"{'r' * 53}-{'n' * 9}"),
    ],
)
def test_names_are_those_of_helms_starter(release: str, given: dict[str, str], name: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(given))
    made = objects(run(program("helm", HELM), "template", release, str(CHART), "--values", str(path)))
    assert one("Deployment", made)["metadata"]["name"] == name
    assert all(len(each["metadata"]["name"]) <= 63 for each in made)
