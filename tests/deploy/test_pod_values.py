"""What values add to the Pods, and to the way to them, in Kubernetes' own words."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import templated
from kubernetes_objects import DEPLOY, GROUPS, PRESETS, committed, container, objects, one, pod, pod_templates
from pod_security import violations


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_restricted(preset: str) -> None:
    assert [violations(each["spec"]) for each in pod_templates(committed(preset)) if violations(each["spec"])] == []


def test_a_pod_that_is_not_restricted_is_reported() -> None:
    wrong = {
        "hostNetwork": True,
        "volumes": [{"name": "all", "hostPath": {"path": "/"}}],
        "containers": [{"name": "x", "ports": [{"hostPort": 80}], "securityContext": {"privileged": True}}],
    }
    kinds = ("allowPrivilegeEscalation", "runAsNonRoot", "privileged", "capabilities", "seccompProfile", "hostPort")
    assert violations(wrong) == ["volume all", "hostNetwork", *(f"x: {kind}" for kind in kinds)]


def made_with(folder: Path, values: dict[str, Any], preset: str = "cpu") -> list[dict[str, Any]]:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return objects(templated(["--values", str(DEPLOY / "presets" / f"{preset}.yaml"), "--values", str(path)]))


NODES = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]}
SPREAD = {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}


@pytest.mark.deploy
@pytest.mark.parametrize("preset", ["cpu", *GROUPS])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("imagePullSecrets", [{"name": "registry"}]),
        ("initContainers", [{"name": "wait", "image": "busybox:1.37"}]),
        ("resourceClaims", [{"name": "chip", "resourceClaimTemplateName": "one-chip"}]),
        ("affinity", {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": NODES}}),
        ("topologySpreadConstraints", [SPREAD]),
        ("priorityClassName", "serving"),
        ("runtimeClassName", "nvidia"),
        ("schedulerName", "volcano"),
    ],
)
def test_a_field_of_the_pods_is_as_given(preset: str, name: str, value: Any, tmp_path: Path) -> None:
    for template in pod_templates(made_with(tmp_path, {name: value}, preset)):
        assert template["spec"][name] == value


@pytest.mark.deploy
@pytest.mark.parametrize("preset", ["cpu", *GROUPS])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (
            "env",
            [{"name": "NO_PROXY", "value": "10.0.0.0/8"}, {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
        ),
        ("envFrom", [{"configMapRef": {"name": "proxy"}}]),
        ("volumeMounts", [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}]),
    ],
)
def test_a_list_of_the_container_is_added(preset: str, name: str, value: list[Any], tmp_path: Path) -> None:
    for template in pod_templates(made_with(tmp_path, {name: value}, preset)):
        (only,) = template["spec"]["containers"]
        assert only[name][-len(value) :] == value


@pytest.mark.deploy
def test_volumes_are_added(tmp_path: Path) -> None:
    ca = {"name": "ca", "configMap": {"name": "company-ca"}}
    assert pod(made_with(tmp_path, {"volumes": [ca]}))["volumes"][-1] == ca


@pytest.mark.deploy
def test_labels_are_of_every_object_and_of_the_pods(tmp_path: Path) -> None:
    queue = {"kueue.x-k8s.io/queue-name": "chips"}
    made = made_with(tmp_path, {"commonLabels": queue, "podLabels": {"team": "us"}})
    assert all(queue.items() <= each["metadata"]["labels"].items() for each in made)
    deployment = one("Deployment", made)
    assert {**queue, "team": "us"}.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert not deployment["spec"]["selector"]["matchLabels"].keys() & {*queue, "team"}


@pytest.mark.deploy
def test_null_takes_a_key_of_a_security_context_away(tmp_path: Path) -> None:
    """OpenShift's profile restricted-v2 takes no user or group but its own."""
    values = {
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        "securityContext": {"readOnlyRootFilesystem": None},
        "cache": {"programs": {"bucket": "programs"}},
    }
    made = made_with(tmp_path, values)
    assert pod(made)["securityContext"].keys() == {"runAsNonRoot", "fsGroupChangePolicy", "seccompProfile"}
    assert container(made)["securityContext"].keys() == {"allowPrivilegeEscalation", "capabilities"}
    assert violations(pod(made)) == []
    (programs,) = (each for each in pod(made)["volumes"] if each["name"] == "programs")
    assert programs["csi"]["volumeAttributes"]["mountOptions"] == "implicit-dirs"


@pytest.mark.deploy
def test_a_buckets_files_are_the_users(tmp_path: Path) -> None:
    values = {"podSecurityContext": {"runAsUser": 1000660000}, "cache": {"programs": {"bucket": "programs"}}}
    spec = pod(made_with(tmp_path, values))
    assert spec["securityContext"]["runAsUser"] == 1000660000
    (programs,) = (each for each in spec["volumes"] if each["name"] == "programs")
    assert programs["csi"]["volumeAttributes"]["mountOptions"] == "implicit-dirs,uid=1000660000,gid=10001"


@pytest.mark.deploy
@pytest.mark.parametrize("preset", ["nvidia", "tpu-v6e-1x1"])
def test_chips_of_claims_are_asked_for_once(preset: str, tmp_path: Path) -> None:
    values = {
        "resourceClaims": [{"name": "chip", "resourceClaimName": "mine"}],
        "resources": {"claims": [{"name": "chip"}]},
    }
    resources = container(made_with(tmp_path, values, preset))["resources"]
    assert resources["claims"] == [{"name": "chip"}]
    assert resources["requests"].keys() == {"cpu", "memory"}
    assert resources["limits"].keys() == {"memory"}


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("given", "name", "is_made"),
    [
        ({}, "roost", True),
        ({"name": "models"}, "models", True),
        ({"create": False, "name": "models"}, "models", False),
        ({"create": False}, "default", False),
    ],
)
def test_a_service_account_may_exist_already(given: dict[str, Any], name: str, is_made: bool, tmp_path: Path) -> None:
    made = made_with(tmp_path, {"serviceAccount": given})
    assert pod(made)["serviceAccountName"] == name
    assert [each["metadata"]["name"] for each in made if each["kind"] == "ServiceAccount"] == [name] * is_made


@pytest.mark.deploy
def test_an_address_of_ipv6(tmp_path: Path) -> None:
    assert "--host=::" in container(made_with(tmp_path, {"host": "::"}))["args"]


@pytest.mark.deploy
def test_no_spread_at_all(tmp_path: Path) -> None:
    assert "topologySpreadConstraints" not in pod(made_with(tmp_path, {"topologySpreadConstraints": []}))


@pytest.mark.deploy
def test_a_service_has_annotations(tmp_path: Path) -> None:
    services = [
        each for each in made_with(tmp_path, {"service": {"annotations": {"a": "b"}}}) if each["kind"] == "Service"
    ]
    assert [each["metadata"].get("annotations") for each in services] == [{"a": "b"}, None]


@pytest.mark.deploy
def test_an_ingress_leads_to_the_service(tmp_path: Path) -> None:
    paths = [{"path": "/v1", "pathType": "Prefix"}]
    tls = [{"secretName": "tls", "hosts": ["a.example"]}]
    hosts = [{"host": "a.example", "paths": paths}, {"paths": paths}]
    given = {"enabled": True, "className": "nginx", "annotations": {"a": "b"}, "hosts": hosts, "tls": tls}
    made = one("Ingress", made_with(tmp_path, {"ingress": given}))
    backend = {"service": {"name": "roost", "port": {"name": "http"}}}
    rule = {"http": {"paths": [{**paths[0], "backend": backend}]}}
    assert made["metadata"]["annotations"] == {"a": "b"}
    assert made["spec"] == {"ingressClassName": "nginx", "tls": tls, "rules": [{"host": "a.example", **rule}, rule]}


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("pool", "backend"),
    [
        (False, {"name": "roost", "port": 8000}),
        (True, {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "roost"}),
    ],
)
def test_a_route_leads_to_the_service_or_to_the_pool(pool: bool, backend: dict[str, Any], tmp_path: Path) -> None:
    parents = [{"name": "gateway", "sectionName": "https"}]
    rules = [{"matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}], "timeouts": {"request": "0s"}}]
    given = {
        "enabled": True,
        "annotations": {"a": "b"},
        "parentRefs": parents,
        "hostnames": ["a.example"],
        "rules": rules,
    }
    made = one("HTTPRoute", made_with(tmp_path, {"httpRoute": given, "inferencePool": {"enabled": pool}}))
    assert made["metadata"]["annotations"] == {"a": "b"}
    routed = [{**rules[0], "backendRefs": [backend]}]
    assert made["spec"] == {"parentRefs": parents, "hostnames": ["a.example"], "rules": routed}
