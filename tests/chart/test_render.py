"""What the chart renders, with the real helm: who is asked about pods, who survives what, and what stays out."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mesh_agent import __version__
from mesh_agent.controllers import settings as controllers
from mesh_agent.injector.server import NAMESPACE_PATH, POD_PATH
from mesh_agent.injector.settings import InjectorSettings
from tests.support.charts import CASES, CHART, Rendered, case, helm, pods, program, render

GOLDEN = Path(__file__).parents[1] / "golden" / "chart"
BUILTIN = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
HA = CHART / "values-ha.yaml"
NEVER = {"kube-system", "kube-public", "kube-node-lease", "mesh-system", "kube-flannel", "calico-system", "cilium"}


@pytest.fixture(scope="module")
def default() -> Rendered:
    """The chart as it is."""
    return render()


def test_the_chart_has_the_version_of_the_agent() -> None:
    found = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert found["version"] == found["appVersion"] == __version__


def test_the_values_fit_on_a_few_screens() -> None:
    assert len((CHART / "values.yaml").read_text().splitlines()) <= 250


@pytest.mark.parametrize("name", CASES)
def test_helm_lint_has_nothing_to_say(name: str) -> None:
    done = helm("lint", "--strict", "--quiet", str(CHART), "--values", str(CHART / "ci" / f"{name}-values.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON schemas that know no other fields than those they name: of the built-in kinds and of ours, as files `<kind>-<group>-<version>.json`."""
    found = tmp_path_factory.mktemp("schemas")
    for path in (BUILTIN / "v1.37.0-local-strict").glob("*.json"):
        text = path.read_text().replace('"/api/_definitions.json#', '"_definitions.json#')
        schema = json.loads(text)
        schema.pop("$id", None)  # a file's references are to its neighbours, not to a web site
        (found / path.name).write_text(json.dumps(schema))
    for path in (CHART / "crds").glob("*.yaml"):
        crd = yaml.safe_load(path.read_text())["spec"]
        schema = _closed(crd["versions"][0]["schema"]["openAPIV3Schema"])
        (found / f"{crd['names']['kind'].lower()}-mesh-v1alpha1.json").write_text(json.dumps(schema))
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_object_is_valid_for_its_api(name: str, schemas: Path, tmp_path: Path) -> None:
    """kubeconform, strictly: an unknown field is an error."""
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(case(name).text)
    assert _kubeconform(schemas, manifests).returncode == 0
    manifests.write_text(manifests.read_text().replace("replicas:", "replica:", 1))
    assert _kubeconform(schemas, manifests).returncode == 1, "the check can fail"


def _kubeconform(schemas: Path, manifests: Path) -> subprocess.CompletedProcess[str]:
    location = f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    command = [program("kubeconform"), "-strict", "-summary", "-schema-location", location, str(manifests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert "Skipped: 0" in done.stdout
    return done


def _closed(schema: Any) -> Any:
    """A schema that knows no other fields than those it names, as the strict ones of the built-in kinds."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def test_the_defaults_are_as_reviewed(default: Rendered, golden: Callable[[Path, str], None]) -> None:
    golden(GOLDEN / "default.expected.yaml", default.text)


TYPOS = [
    "injecter.enabled=true",
    "injector.replica=2",
    "injector.pods.preStopSleep=1",
    "controllers.toMesh.bydefault=true",
    "agent.enable=true",
    "dns.server=x",
    "image.tags=1",
    "nodeAgent.host=x",
    "injector.resources.request=x",
]


@pytest.mark.parametrize("setting", TYPOS)
def test_a_typo_is_refused(setting: str) -> None:
    found = render(settings=(setting,))
    assert found.code != 0
    assert "additional propert" in found.complaint.lower()


WRONG = [
    "injector.failurePolicy=Sometimes",
    "injector.replicas=0",
    "injector.timeoutSeconds=31",
    "nodeAgent.port=70000",
    "controllers.clusterName=Blue",
    "logLevel=loud",
    "dns.enabled=true",
    "tests.namespace=shop",  # it would be deleted
]


@pytest.mark.parametrize("setting", WRONG)
def test_a_wrong_value_is_refused(setting: str) -> None:
    assert render(settings=(setting,)).code != 0


# the webhook


def _webhooks(found: Rendered) -> list[Any]:
    return list(found.find("MutatingWebhookConfiguration", "mesh-injector")["webhooks"])


def test_the_cluster_starts_without_an_injector(default: Rendered) -> None:
    for each in _webhooks(default):
        names = [
            set(one["values"])
            for one in each["namespaceSelector"]["matchExpressions"]
            if one["key"] == "kubernetes.io/metadata.name" and one["operator"] == "NotIn"
        ]
        assert len(names) == 1
        assert names[0] >= NEVER


def test_its_own_namespace_is_never_asked_about() -> None:
    for each in _webhooks(render(namespace="elsewhere", settings=("injector.excludedNamespaces[0]=cni",))):
        excluded = each["namespaceSelector"]["matchExpressions"][0]
        assert {"elsewhere", "kube-system", "cni"} <= set(excluded["values"])
    for each in _webhooks(render(settings=("injector.excludedNamespaces=null",))):
        assert {"mesh-system", "kube-system"} <= set(each["namespaceSelector"]["matchExpressions"][0]["values"])


def test_the_webhook_asks_about_new_pods_alone(default: Rendered) -> None:
    for each in _webhooks(default):
        assert each["rules"] == [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }
        ]
        assert (each["sideEffects"], each["reinvocationPolicy"]) == ("None", "IfNeeded")
        assert each["admissionReviewVersions"] == ["v1"]
        assert "caBundle" not in each["clientConfig"], "the injector keeps it; an upgrade must not take it away"


@pytest.mark.parametrize("policy", ["Fail", "Ignore"])
def test_the_failure_policy_is_the_same_for_all(policy: str) -> None:
    found = _webhooks(render(settings=(f"injector.failurePolicy={policy}",)))
    assert {each["failurePolicy"] for each in found} == {policy}


def test_the_webhook_calls_paths_that_the_injector_answers(default: Rendered) -> None:
    paths = {each["name"].partition(".")[0]: each["clientConfig"]["service"]["path"] for each in _webhooks(default)}
    assert paths == {"namespace": NAMESPACE_PATH, "consul-namespace": NAMESPACE_PATH, "pod": POD_PATH}


def test_the_injector_may_change_its_own_configuration_alone(default: Rendered) -> None:
    assert default.find("ClusterRole", "mesh-injector")["rules"] == [
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": ["mesh-injector"],
            "verbs": ["get", "patch"],
        }
    ]


# what the programs are told


def _environment(found: Rendered, deployment: str, variable: str) -> Any:
    container = found.find("Deployment", deployment)["spec"]["template"]["spec"]["containers"][0]
    return json.loads(next(each["value"] for each in container["env"] if each["name"] == variable))


@pytest.mark.parametrize("name", CASES)
def test_the_injector_understands_its_settings(name: str) -> None:
    found = InjectorSettings(
        image="x", version="x", **_environment(case(name), "mesh-injector", "MESH_INJECTOR_SETTINGS")
    )
    assert found.pre_stop_sleep_s == 2


@pytest.mark.parametrize("name", ["default", "everything"])
def test_the_controllers_understand_their_settings(name: str) -> None:
    text = json.dumps(_environment(case(name), "mesh-controllers", "MESH_CONTROLLERS_SETTINGS"))
    found = controllers.load(text, cluster="blue", namespace="mesh-system", identity="x")
    assert found.to_mesh.by_default == (name == "everything")
    assert found.to_kubernetes.enabled == (name == "everything")


def test_defaults_of_values_and_programs_are_the_same(default: Rendered) -> None:
    text = json.dumps(_environment(default, "mesh-controllers", "MESH_CONTROLLERS_SETTINGS"))
    given = controllers.load(text, cluster="blue", namespace="mesh-system", identity="x")
    assert given == controllers.load("{}", cluster="blue", namespace="mesh-system", identity="x")
    pods_get = _environment(default, "mesh-injector", "MESH_INJECTOR_SETTINGS")
    assert InjectorSettings(image="x", version="x", **pods_get) == InjectorSettings(image="x", version="x")


def test_the_image_is_the_chart_s_version_unless_said_otherwise(default: Rendered) -> None:
    assert _images(default) == {f"mesh:{__version__}"}
    assert _images(case("everything")) == {"registry.example.org/mesh:9.9.9-build"}


def _images(found: Rendered) -> set[str]:
    return {container["image"] for each in found.objects for spec in pods(each) for container in spec["containers"]}


# availability


def test_one_replica_needs_no_budget(default: Rendered) -> None:
    assert default.of("PodDisruptionBudget") == []


def test_high_availability_survives_a_node() -> None:
    found = render(HA)
    for each in found.of("Deployment"):
        if each["metadata"]["name"].startswith("mesh-test"):
            continue
        assert each["spec"]["replicas"] >= 2
        spread = each["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {one["topologyKey"] for one in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    budgets = {each["metadata"]["name"]: each["spec"] for each in found.of("PodDisruptionBudget")}
    assert set(budgets) == {"mesh-injector", "mesh-controllers"}
    for name, budget in budgets.items():
        labels = found.find("Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_an_upgrade_never_leaves_the_api_server_without_an_answer(default: Rendered) -> None:
    found = default.find("Deployment", "mesh-injector")["spec"]
    assert found["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert found["template"]["spec"]["containers"][0]["lifecycle"]["preStop"] == {"sleep": {"seconds": 5}}


@pytest.mark.parametrize("name", CASES)
def test_selectors_find_their_pods(name: str) -> None:
    found = case(name)
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in found.of("Deployment", "DaemonSet")]
    selectors = [each["spec"]["selector"] for each in found.of("Service")]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in found.of("NetworkPolicy")]
    for selector in selectors:
        assert sum(selector.items() <= each.items() for each in labels) == 1


@pytest.mark.parametrize("name", CASES)
def test_what_belongs_to_a_namespace_says_which(name: str) -> None:
    cluster = {
        "ClusterRole",
        "ClusterRoleBinding",
        "MutatingWebhookConfiguration",
        "CustomResourceDefinition",
        "Namespace",
    }
    for each in case(name).objects:
        assert ("namespace" in each["metadata"]) == (each["kind"] not in cluster), each["metadata"]["name"]


def test_an_uninstall_does_not_wait_for_what_a_failed_installation_never_made(default: Rendered) -> None:
    volumes = default.find("Job", "mesh-farewell")["spec"]["template"]["spec"]["volumes"]
    (bundle,) = (each["configMap"] for each in volumes if "configMap" in each)
    assert bundle == {"name": "mesh-ca-bundle", "optional": True}


def test_custom_resources_survive_an_uninstall() -> None:
    assert "CustomResourceDefinition" not in {
        each["kind"] for path in (CHART / "templates").rglob("*.yaml") for each in _kinds(path)
    }
    assert len(list((CHART / "crds").glob("*.yaml"))) == 3


def _kinds(path: Path) -> list[dict[str, str]]:
    lines = path.read_text().splitlines()
    return [{"kind": line.removeprefix("kind: ")} for line in lines if line.startswith("kind: ")]


def test_the_node_s_agent_reaches_the_api_server_without_dns_and_is_started_again_when_it_hangs() -> None:
    found = render(settings=("agent.enabled=true",)).find("DaemonSet", "mesh-agent")["spec"]["template"]["spec"]
    (container,) = found["containers"]
    env = {each["name"]: each.get("value", "") for each in container["env"]}
    assert env["MESH_KUBERNETES__API"] == "https://$(KUBERNETES_SERVICE_HOST):$(KUBERNETES_SERVICE_PORT)"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"host": "127.0.0.1", "path": "/v1/agent/self", "port": 8500}
    assert env["MESH_KUBERNETES__CONTROLLERS"] == "mesh-system/mesh-controller"
    assert env["MESH_KUBERNETES__INJECTORS"] == "mesh-system/mesh-injector"


@pytest.mark.parametrize("namespace", ["mesh-services", "mesh-system"])
def test_what_others_put_beside_the_mesh_s_names_survives_and_the_names_themselves_go(namespace: str) -> None:
    found = render(
        settings=("controllers.toKubernetes.enabled=true", f"controllers.toKubernetes.namespace={namespace}")
    )
    kept = [each for each in found.of("Namespace") if each["metadata"]["name"] == namespace]
    assert len(kept) == (namespace != "mesh-system"), "the release's own namespace is not the chart's"
    for each in kept:
        assert each["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    (role,) = (each for each in found.of("Role") if each["metadata"]["name"] == "mesh-controller-farewell-services")
    assert role["metadata"]["namespace"] == namespace
    assert role["rules"] == [{"apiGroups": [""], "resources": ["services"], "verbs": ["list", "delete"]}]
    names = [
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        for each in found.of("Role", "RoleBinding")
    ]
    assert len(set(names)) == len(names)
