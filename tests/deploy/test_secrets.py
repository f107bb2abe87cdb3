"""Secrets of the chart: each is in a Secret that exists or in one that the chart makes, and nowhere else."""

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import program, run, templated
from kubernetes_objects import CHART, DEPLOY, GROUPS, container, objects, one, pod, pod_templates
from serve_settings import settings_of

pytestmark = pytest.mark.deploy

HELM = "python3 dev.py test-deploy brings it"
VALUES: dict[str, Any] = {
    "apiKeys": {"value": "us:secret-api-key\n"},
    "adminKey": {"value": "secret-admin-key"},
    "stateKey": {"value": "secret-state-key-of-16"},
    "store": {"value": "postgresql://user:secret-password@database/roost", "states": {"claim": "states"}},
    "model": {"hubToken": {"secret": "", "value": "secret-hub-token"}},
    "tls": {"certificate": "secret certificate & chain", "privateKey": "secret private <key>"},
}
NAMES: dict[str, Any] = {
    "apiKeys": {"secret": "my-keys", "key": "list"},
    "adminKey": {"secret": "my-admin"},
    "stateKey": {"secret": "my-state", "key": "hmac"},
    "store": {"secret": "my-database", "key": "dsn", "states": {"claim": "states"}},
    "model": {"hubToken": {"secret": "my-token"}},
    "tls": {"secret": "my-certificate"},
}


def made_with(folder: Path, values: dict[str, Any], preset: str = "cpu") -> list[dict[str, Any]]:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return objects(templated(["--values", str(DEPLOY / "presets" / f"{preset}.yaml"), "--values", str(path)]))


def references(template: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns the Secret and the key of each variable and file that has one."""
    (only,) = template["spec"]["containers"]
    found = {}
    for variable in only["env"]:
        if "valueFrom" in variable:
            reference = variable["valueFrom"]["secretKeyRef"]
            found[variable["name"]] = (reference["name"], reference["key"])
    for volume in (each for each in template["spec"]["volumes"] if "secret" in each):
        for item in volume["secret"]["items"]:
            found[item["path"]] = (volume["secret"]["secretName"], item["key"])
    return found


@pytest.mark.parametrize("preset", ["cpu", *GROUPS])
def test_values_of_secrets_are_in_the_charts_own_secret_only(preset: str, tmp_path: Path) -> None:
    made = made_with(tmp_path, VALUES, preset)
    data = {name: base64.b64decode(text).decode() for name, text in one("Secret", made)["data"].items()}
    assert data == {
        "api-keys": "us:secret-api-key\n",
        "admin-key": "secret-admin-key",
        "state-key": "secret-state-key-of-16",
        "store": "postgresql://user:secret-password@database/roost",
        "hub-token": "secret-hub-token",
        "tls.crt": "secret certificate & chain",
        "tls.key": "secret private <key>",
    }
    rest = yaml.safe_dump([each for each in made if each["kind"] != "Secret"])
    assert not any(
        word in rest for text in data.values() for word in (text.strip(), base64.b64encode(text.encode()).decode())
    )
    assert set(references(pod_templates(made)[0]).values()) == {("roost", name) for name in data}


def test_secrets_that_exist_are_named(tmp_path: Path) -> None:
    made = made_with(tmp_path, NAMES)
    assert not any(each["kind"] == "Secret" for each in made)
    assert references(pod_templates(made)[0]) == {
        "HF_TOKEN": ("my-token", "token"),
        "ROOST_ADMIN_KEY": ("my-admin", "key"),
        "ROOST_STATE_KEY": ("my-state", "hmac"),
        "ROOST_STORE": ("my-database", "dsn"),
        "keys": ("my-keys", "list"),
        "tls.crt": ("my-certificate", "tls.crt"),
        "tls.key": ("my-certificate", "tls.key"),
    }


@pytest.mark.parametrize("values", [VALUES, NAMES])
def test_the_server_reads_them(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_with(tmp_path, values)
    settings = settings_of(container(made), monkeypatch)
    mounts = {mount["name"]: mount["mountPath"] for mount in container(made)["volumeMounts"]}
    assert settings.admin_key
    assert settings.state_key
    assert settings.api_key_file == Path(mounts["keys"]) / "keys"
    assert (settings.ssl_certfile, settings.ssl_keyfile) == tuple(
        Path(mounts["tls"]) / name for name in ("tls.crt", "tls.key")
    )


@pytest.mark.parametrize("values", [VALUES, NAMES])
def test_followers_get_no_secrets_of_the_api(values: dict[str, Any], tmp_path: Path) -> None:
    leader, follower = pod_templates(made_with(tmp_path, values | {"cache": {"states": {"claim": "c"}}}, GROUPS[0]))
    assert references(follower).keys() == {"HF_TOKEN"}
    names = [{volume["name"] for volume in each["spec"]["volumes"]} for each in (leader, follower)]
    assert names[0] - names[1] == {"keys", "tls", "states", "checkpoints"}
    (only,) = follower["spec"]["containers"]
    assert {mount["name"] for mount in only["volumeMounts"]} == names[1]


def test_probes_and_scrapes_speak_tls_where_the_server_does(tmp_path: Path) -> None:
    values = {"tls": {"secret": "my-certificate"}, "monitoring": {"kind": "podMonitoring"}}
    made = made_with(tmp_path, values)
    probes = (container(made)[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness"))
    assert {probe["scheme"] for probe in probes} == {"HTTPS"}
    (endpoint,) = one("PodMonitoring", made)["spec"]["endpoints"]
    assert (endpoint["scheme"], endpoint["tls"]) == ("https", {"insecureSkipVerify": True})
    services = {each["metadata"]["name"]: each for each in made if each["kind"] == "Service"}
    assert services["roost"]["spec"]["ports"][0]["appProtocol"] == "https"
    assert not any("secret" in volume for volume in pod(made_with(tmp_path, {}))["volumes"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"adminKey": {"secret": "a", "value": "text-of-it"}},
            'adminKey has both secret and value; set one of them to ""',
        ),
        ({"stateKey": {"value": "text-of-it"}}, "stateKey.value must have at least 16 characters"),
        ({"tls": {"certificate": "text-of-it"}}, "tls must have certificate and privateKey together"),
        ({"tls": {"secret": "a", "privateKey": "text-of-it"}}, "tls has both secret and certificate or privateKey"),
        ({"tls": {"secret": "a"}, "inferencePool": {"enabled": True}}, "tls must be empty with inferencePool.enabled"),
        (
            {"stateKey": {"value": "text-of-it-with-16"}, "env": [{"name": "ROOST_STATE_KEY"}]},
            "value must be 'a variable that the server does not read",
        ),
    ],
)
def test_a_secret_that_makes_no_sense_is_refused_unseen(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    answer = run(program("helm", HELM), "template", "roost", str(CHART), "--values", str(path), fails=True)
    assert said in answer
    assert "text-of-it" not in answer
