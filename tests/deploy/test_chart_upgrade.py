"""The chart of an earlier commit beside today's: what Helm upgrades must keep its name and its selector."""

import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from deploy_tools import program, run
from kubernetes_objects import DEPLOY, PRESETS, objects

pytestmark = pytest.mark.deploy

HELM = "python3 dev.py test-deploy brings it"
EARLIER: Final = "b80da08"
"""Commit whose chart may be installed."""

REFUSED: Final[list[tuple[dict[str, Any], str]]] = [
    ({"cache": {"downloads": {"claim": "hub", "size": "1Gi"}}}, "at '/cache/downloads/size': got string, want null"),
    ({"env": [{"name": "ROOST_PORT", "value": "80"}]}, "use settings, apiKeys, store, model.hubToken or cache instead"),
    ({"env": [{"name": "A", "value": 1}]}, "at '/env/0/value': got number, want string"),
    (
        {"autoscaling": {"kind": "hpa", "minReplicas": 9}},
        "autoscaling.minReplicas (9) must be at most autoscaling.maxReplicas (8)",
    ),
    ({"monitoring": None}, "missing property 'monitoring'"),
]
"""Values that the earlier chart takes and today's refuses, with the refusal, which names what to give instead."""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The earlier deploy/."""
    git = ["git", "-C", str(DEPLOY.parent)]
    if subprocess.run([*git, "rev-parse", "--git-dir"], capture_output=True).returncode:
        pytest.skip("this is no git checkout")
    archive = subprocess.run([*git, "archive", EARLIER, "deploy"], capture_output=True)
    if archive.returncode:
        pytest.skip("the history is missing")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder / "deploy"


def selectors(deploy: Path, preset: Path) -> dict[tuple[str, str], Any]:
    """Returns the selector of each object, None if it has none, by kind and name."""
    made = objects(run(program("helm", HELM), "template", "roost", str(deploy / "chart"), "--values", str(preset)))
    return {
        (each["kind"], each["metadata"]["name"]): spec.get("selector", spec.get("podSelector"))
        for each in made
        for spec in (each.get("spec", {}),)
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_names_and_selectors_stay(preset: str, earlier: Path) -> None:
    values = earlier / "presets" / f"{preset}.yaml"
    before = selectors(earlier, values)
    assert before
    assert selectors(DEPLOY, values) == before


@pytest.mark.parametrize(("values", "said"), REFUSED)
def test_a_refused_value_is_told_what_to_give_instead(
    values: dict[str, Any], said: str, earlier: Path, tmp_path: Path
) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    command = (program("helm", HELM), "template", "roost", "--values", str(file))
    run(*command, str(earlier / "chart"))
    assert said in run(*command, str(DEPLOY / "chart"), fails=True)
