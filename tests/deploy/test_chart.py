"""The chart through helm, and what comes out of it through validators of Kubernetes' objects."""

import itertools
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from crd_schemas import SPECS, schema
from deploy_tools import load, missing, program, run, templated
from kubernetes_objects import CHART, DEPLOY, GROUPS, PRESETS, container, objects, one, pod, pod_templates
from roost.server.run.lifecycle import STOP_TIMEOUT_S
from serve_settings import settings_of

pytestmark = pytest.mark.deploy

VERSIONS = ("1.33", "1.34", "1.35", "1.36", "1.37")
HELM = "python3 dev.py test-deploy brings it"

# Values that switch much on, each with kinds of volumes of its own.
EVERYTHING: dict[str, dict[str, Any]] = {
    "google": {
        "spot": True,
        "image": {"digest": f"sha256:{'0' * 64}"},
        "imagePullSecrets": [{"name": "pull"}],
        "model": {"name": "/models/2b-it", "volume": {"bucket": "weights"}, "servedName": "gemma"},
        "cache": {"programs": {"bucket": "programs"}, "states": {"size": "20Gi"}},
        "apiKeys": {"secret": "keys"},
        "adminKey": {"secret": "admin"},
        "store": {"secret": "database", "states": {"bucket": "checkpoints"}},
        "settings": {
            "otlp_traces_endpoint": "http://otel:4318/v1/traces",
            "max_queue": 64,
            "strict": True,
            "request_timeout": "off",
        },
        "autoscaling": {"kind": "hpa", "hpaMetric": "prometheus.googleapis.com|roost_num_requests_waiting|gauge"},
        "monitoring": {"kind": "podMonitoring", "alerts": True, "dashboard": True},
        "inferencePool": {"enabled": True},
    },
    "operator": {
        "model": {"name": "/models", "volume": {"claim": "weights"}},
        "cache": {"programs": {"claim": "shared"}, "states": {"claim": "states"}, "downloads": {"claim": "hub"}},
        "serviceAccount": {"annotations": {"iam.gke.io/gcp-service-account": "roost@example.iam"}},
        "autoscaling": {"kind": "keda", "slotsUsedPerReplica": 80},
        "tls": {"secret": "certificate"},
        "monitoring": {"kind": "serviceMonitor", "alerts": True, "labels": {"release": "prometheus"}},
        "nodeSelector": {"pool": "inference"},
        "tolerations": [{"key": "inference", "operator": "Exists"}],
        "podAnnotations": {"example.org/owner": "us"},
        "networkPolicy": {
            "clients": [{"namespaceSelector": {}}],
            "egressHttps": False,
            "egress": [{"ports": [{"port": 4318}]}],
        },
    },
    "platform": {
        "apiKeys": {"value": "us:key-1\nthem:key-2\n"},
        "stateKey": {"value": "0123456789abcdef"},
        "tls": {"certificate": "-----BEGIN CERTIFICATE-----\n", "privateKey": "-----BEGIN PRIVATE KEY-----\n"},
        "monitoring": {"kind": "podMonitoring"},
        "host": "::",
        "commonLabels": {"kueue.x-k8s.io/queue-name": "chips"},
        "podLabels": {"team": "models"},
        "podAnnotations": {"example.org/owner": "us"},
        "env": [
            {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
            {"name": "SSL_CERT_FILE", "value": "/etc/ca/ca.crt"},
        ],
        "envFrom": [{"secretRef": {"name": "hub-credentials"}}],
        "volumes": [{"name": "ca", "configMap": {"name": "company-ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
        "initContainers": [
            {"name": "wait", "image": "busybox:1.37", "command": ["true"]},
            {"name": "sidecar", "image": "busybox:1.37", "command": ["sleep"], "restartPolicy": "Always"},
        ],
        "annotations": {"reloader.stakater.com/auto": "true"},
        "rollout": {"minReadySeconds": 10, "revisionHistoryLimit": 1},
        "resourceClaims": [{"name": "chip", "resourceClaimTemplateName": "one-chip"}],
        "resources": {"claims": [{"name": "chip"}], "limits": {"cpu": 4, "memory": 8589934592}},
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None, "supplementalGroups": [44]},
        "securityContext": {"procMount": "Default"},
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
                }
            }
        },
        "topologySpreadConstraints": [
            {"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
        "priorityClassName": "serving",
        "runtimeClassName": "nvidia",
        "schedulerName": "volcano",
        "serviceAccount": {"create": False, "name": "models"},
        "service": {
            "type": "LoadBalancer",
            "loadBalancerClass": "networking.gke.io/l4-regional-external",
            "annotations": {"cloud.google.com/neg": "{}"},
        },
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "annotations": {"nginx.ingress.kubernetes.io/proxy-read-timeout": "3600"},
            "hosts": [{"host": "roost.example.org", "paths": [{"path": "/", "pathType": "Prefix"}]}],
            "tls": [{"secretName": "roost-tls", "hosts": ["roost.example.org"]}],
        },
        "httpRoute": {
            "enabled": True,
            "annotations": {"example.org/owner": "us"},
            "parentRefs": [{"name": "gateway", "namespace": "gateways", "sectionName": "https"}],
            "hostnames": ["roost.example.org"],
        },
    },
}
COMBINATIONS = [*itertools.product(PRESETS, (None, *EVERYTHING))]


def values_file(folder: Path, values: dict[str, Any]) -> list[str]:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    return ["--values", str(path)]


@pytest.fixture(params=COMBINATIONS, ids=lambda pair: f"{pair[0]}, {pair[1] or 'plain'}")
def made(request: pytest.FixtureRequest, tmp_path: Path) -> list[dict[str, Any]]:
    """What the chart becomes with a preset, and perhaps much switched on."""
    preset, more = request.param
    extra = values_file(tmp_path, EVERYTHING[more]) if more else []
    return objects(templated(["--values", str(DEPLOY / "presets" / f"{preset}.yaml"), *extra]))


def made_with(folder: Path, values: dict[str, Any], preset: str = "cpu") -> list[dict[str, Any]]:
    return objects(templated(["--values", str(DEPLOY / "presets" / f"{preset}.yaml"), *values_file(folder, values)]))


def tpus(hosts: int = 1, **accelerator: Any) -> dict[str, Any]:
    """Values for eight chips of one host; or other ones."""
    chips = {"kind": "tpu", "tpuType": "tpu-v5-lite-podslice", "tpuTopology": "2x4", "chips": 8, **accelerator}
    return {"accelerator": chips, "hosts": {"count": hosts}}


@cache
def validate() -> Any:
    try:
        import kubernetes_validate
    except ImportError:
        missing("kubernetes-validate", HELM)
    return kubernetes_validate.validate


# --- lint, drift, schemas


@pytest.mark.parametrize("preset", PRESETS)
def test_helm_finds_no_fault(preset: str) -> None:
    run(program("helm", HELM), "lint", "--strict", str(CHART), "--values", str(DEPLOY / "presets" / f"{preset}.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_manifests_are_what_the_chart_makes(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "binaries", load("binaries"))
    program("helm", HELM)
    for name, text in load("render").render(preset).items():
        committed = (DEPLOY / "manifests" / preset / name).read_text()
        assert committed == text, f"{preset}/{name} is stale: run python3 dev.py manifests"


def test_kubernetes_takes_each_object(made: list[dict[str, Any]]) -> None:
    own = [each for each in made if (each["apiVersion"], each["kind"]) not in SPECS]
    own += (  # which other projects' objects have in them, too
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "of-a-set"}, "template": template}
        for template in pod_templates(made)
    )
    assert len(own) >= 6
    for each, version in itertools.product(own, VERSIONS):
        validate()(each, version, strict=True)


def test_controllers_take_each_object(made: list[dict[str, Any]]) -> None:
    for each in made:
        if (each["apiVersion"], each["kind"]) in SPECS:
            jsonschema.validate(each, schema(each["apiVersion"], each["kind"]))


def test_the_server_takes_each_argument(made: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(container(made), monkeypatch)
    assert (settings.admin_port is None) == any(each["kind"] == "InferencePool" for each in made)
    for follower in pod_templates(made)[1:]:
        assert settings_of(follower["spec"]["containers"][0], monkeypatch, index=1).host_index == 1


def test_each_kind_of_object_is_made(tmp_path: Path) -> None:
    made = [
        each
        for preset in ("cpu", *GROUPS)
        for values in EVERYTHING.values()
        for each in made_with(tmp_path, values, preset)
    ]
    assert SPECS.keys() <= {(each["apiVersion"], each["kind"]) for each in made}


def test_the_validator_refuses_fields_that_nobody_knows() -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"prots": []}}
    with pytest.raises(Exception, match="prots"):
        validate()(wrong, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("preset", PRESETS)
def test_kustomize_builds_the_manifests(preset: str) -> None:
    built = run(program("kubectl", HELM), "kustomize", str(DEPLOY / "manifests" / preset))
    assert pod_templates(objects(built))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"replica": 1}, "replica"),
        ({"accelerator": {"kind": "gpu"}}, "kind"),
        ({"accelerator": {"kind": "tpu", "tpuType": "tpu-v5-lite-podslice", "tpuTopology": "3x3"}}, "tpuTopology"),
        (tpus(chips=1), "accelerator.tpuTopology 2x4 has 8 chips, but accelerator.chips (1) times hosts.count (1)"),
        (tpus(chips=2), "chips"),
        (tpus(hosts=8, chips=1), "accelerator.chips must be 4 where hosts.count is 8"),
        (tpus(mesh="data=2,model=2"), "accelerator.mesh data=2,model=2 takes 4 devices, but accelerator.chips (8)"),
        (tpus(mesh="data=2,rows=2"), "mesh"),
        (tpus(hosts=2, chips=4, mesh=""), "accelerator.mesh must not be empty"),
        ({"hosts": {"count": 0}}, "count"),
        ({"settings": {"num_hosts": 2}}, "settings"),
        ({"accelerator": {"kind": "cpu", "chips": 4}}, "chips"),
        ({"model": {"name": "/weights/2b"}}, "name"),
        ({"model": {"name": "/models/2b"}}, "volume"),
        ({"settings": {"port": 80}}, "settings"),
        ({"resources": {"limits": {"google.com/tpu": "1"}}}, "limits"),
        ({"monitoring": {"alerts": True}}, "alerts"),
        ({"rollout": {"maxSurge": 0, "maxUnavailable": 0}}, "rollout"),
        ({"spot": True, "drain": {"timeoutSeconds": 30}}, "spot nodes give a Pod 15 s"),
        ({"drain": {"lagSeconds": 90}}, "drain.lagSeconds"),
        ({"store": {"states": {"claim": "states"}}}, "store.states needs the database: store.secret or store.value"),
        ({"ingress": {"enabled": True}}, "at '/ingress/hosts'"),
        ({"httpRoute": {"enabled": True}}, "at '/httpRoute/parentRefs'"),
        ({"httpRoute": {"rules": [{"backendRefs": []}]}}, "at '/httpRoute/rules/0/backendRefs'"),
        ({"volumes": [{"name": "tmp", "emptyDir": {}}]}, "at '/volumes/0/name'"),
        ({"env": [{"value": "1"}]}, "at '/env/0': missing property 'name'"),
        ({"env": [{"name": "HF_HOME", "value": "/x"}]}, "at '/env/0/name': value must be 'a variable that the server"),
        ({"service": {"loadBalancerClass": "internal"}}, "at '/service/type': value must be 'LoadBalancer'"),
        ({"resources": {"limits": {"cpu": -1}}}, "at '/resources/limits/cpu': minimum"),
    ],
)
def test_values_that_make_no_sense_are_refused(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    answer = run(program("helm", HELM), "template", str(CHART), *values_file(tmp_path, values), fails=True)
    assert said in answer


@pytest.mark.parametrize("name", yaml.safe_load((CHART / "values.yaml").read_text()))
def test_a_value_that_is_null_is_left_out_or_refused_by_the_schema(name: str, tmp_path: Path) -> None:
    arguments = ["template", "roost", str(CHART), *values_file(tmp_path, {name: None})]
    ended = subprocess.run([program("helm", HELM), *arguments], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 or f"at '': missing property '{name}'" in ended.stderr, ended.stderr


# --- what some values do


def test_spot_pods_are_gone_within_15_seconds(tmp_path: Path) -> None:
    made = made_with(tmp_path, {"spot": True})
    assert pod(made)["terminationGracePeriodSeconds"] <= 15
    assert pod(made)["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert "lifecycle" not in container(made)
    assert "--drain-timeout=9" in container(made)["args"]


@pytest.mark.parametrize("states", [{"claim": "states"}, {"bucket": "states"}])
@pytest.mark.parametrize("is_spot", [False, True])
def test_pods_with_checkpoints_have_time_to_write_them(states: dict[str, str], is_spot: bool, tmp_path: Path) -> None:
    """Drain, evacuation and the server's own end fit into the grace, which on spot nodes is 15 seconds at most."""
    values = {"spot": is_spot, "store": {"secret": "database", "states": states}, "drain": {"preStopSeconds": 0}}
    made = made_with(tmp_path, values)
    arguments = dict(each.removeprefix("--").split("=", 1) for each in container(made)["args"] if "=" in each)
    drain, evacuation = int(arguments["drain-timeout"]), int(arguments["evacuate-seconds"])
    assert (drain, evacuation) == ((3, 6) if is_spot else (60, 20))
    grace = pod(made)["terminationGracePeriodSeconds"]
    assert drain + evacuation + 2 * STOP_TIMEOUT_S < grace
    assert not is_spot or grace <= 15
    assert {"name": "checkpoints", "mountPath": arguments["state-store"]} in container(made)["volumeMounts"]


def test_privileges_for_tpus_are_a_switch(tmp_path: Path) -> None:
    made = made_with(tmp_path, {"accelerator": {"privileged": True}}, "tpu-v6e-1x1")
    assert container(made)["securityContext"] == {"readOnlyRootFilesystem": True, "privileged": True}
    assert pod(made)["securityContext"]["runAsUser"] == 0


@pytest.mark.parametrize("store", [{"secret": "database"}, {"value": "postgresql://database/roost"}])
def test_a_database_may_be_reached(store: dict[str, str], tmp_path: Path) -> None:
    made = made_with(tmp_path, {"store": {**store, "port": 6543}})
    (policy,) = (each for each in made if each["kind"] == "NetworkPolicy")
    assert {"ports": [{"port": 6543}]} in policy["spec"]["egress"]


def test_a_pool_reads_metrics_where_it_sends_requests(tmp_path: Path) -> None:
    made = made_with(tmp_path, {"inferencePool": {"enabled": True}})
    assert "--metrics-compat=vllm" in container(made)["args"]
    assert not any(each.startswith("--admin-port") for each in container(made)["args"])
    assert one("InferencePool", made)["spec"]["targetPorts"] == [{"number": 8000}]
    probes = (container(made)[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "readiness", "liveness"))
    assert set(probes) == {"http"}
    (picker,) = (each for each in made if each["metadata"]["name"] == "roost-picker")
    assert yaml.safe_load(picker["data"]["roost.yaml"]) == yaml.safe_load((CHART / "files" / "picker.yaml").read_text())


def test_an_autoscaler_decides_on_replicas(tmp_path: Path) -> None:
    made = made_with(tmp_path, {"autoscaling": {"kind": "keda", "slotsUsedPerReplica": 80}})
    assert "replicas" not in one("Deployment", made)["spec"]
    triggers = one("ScaledObject", made)["spec"]["triggers"]
    pods = '{namespace="default",pod=~"roost-[a-z0-9]+-[a-z0-9]{5}"}'
    assert [(each["metadata"]["query"], each["metadata"]["threshold"]) for each in triggers] == [
        (f"sum(roost_num_requests_waiting{pods})", "5"),
        (f"sum(roost_slots_used{pods})", "80"),
    ]


def test_the_scalers_behavior_may_be_given(tmp_path: Path) -> None:
    scaling = {"kind": "hpa", "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}}}
    behavior = one("HorizontalPodAutoscaler", made_with(tmp_path, {"autoscaling": scaling}))["spec"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 60
    assert behavior["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]


@pytest.mark.parametrize(
    ("values", "is_said"),
    [
        ({"service": {"type": "LoadBalancer"}}, True),
        ({"service": {"type": "LoadBalancer"}, "networkPolicy": {"enabled": False}}, False),
        ({"service": {"type": "LoadBalancer"}, "networkPolicy": {"clients": [{"namespaceSelector": {}}]}}, False),
        ({}, False),
    ],
)
def test_notes_say_that_the_network_policy_keeps_others_out(
    values: dict[str, Any], is_said: bool, tmp_path: Path
) -> None:
    options = ("install", "roost", str(CHART), "--dry-run=client", *values_file(tmp_path, values))
    assert ("networkPolicy.clients names where they come from" in run(program("helm", HELM), *options)) == is_said


@pytest.mark.parametrize(("preset", "kind"), [("cpu", "Deployment"), (GROUPS[0], "LeaderWorkerSet")])
def test_replicas_may_be_left_to_kubectl_scale(preset: str, kind: str, tmp_path: Path) -> None:
    assert "replicas" not in one(kind, made_with(tmp_path, {"replicas": None}, preset))["spec"]
    assert one(kind, made_with(tmp_path, {"replicas": 3}, preset))["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("values", "mesh"),
    [
        (tpus(), ["--mesh=auto"]),
        (tpus(mesh="data=2,model=4"), ["--mesh=data=2,model=4"]),
        (tpus(mesh=""), []),
        (tpus(chips=1, tpuTopology="1x1"), []),
        (tpus(hosts=4, chips=4, tpuTopology="4x4"), ["--mesh=auto"]),
        ({"accelerator": {"kind": "nvidia", "chips": 2}}, ["--mesh=auto"]),
    ],
)
def test_chips_are_a_mesh(values: dict[str, Any], mesh: list[str], tmp_path: Path) -> None:
    for template in pod_templates(made_with(tmp_path, values)):
        (only,) = template["spec"]["containers"]
        assert [each for each in only["args"] if each.startswith("--mesh")] == mesh


@pytest.mark.parametrize("kind", ["hpa", "keda"])
def test_groups_are_scaled_as_a_whole(kind: str, tmp_path: Path) -> None:
    """By the scale of their set, and by what leaders tell."""
    made = made_with(tmp_path, {"autoscaling": {"kind": kind}}, GROUPS[0])
    scaler = one({"hpa": "HorizontalPodAutoscaler", "keda": "ScaledObject"}[kind], made)
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "name": "roost",
    }
    assert "replicas" not in one("LeaderWorkerSet", made)["spec"]
    if kind == "keda":
        query = scaler["spec"]["triggers"][0]["metadata"]["query"]
        assert query == 'sum(roost_num_requests_waiting{namespace="default",pod=~"roost-[0-9]+"})'
