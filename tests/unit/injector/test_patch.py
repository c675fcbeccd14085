"""What the injector refuses, and what it does when it sees a pod again."""

import copy
from typing import Any

import pytest

from mesh_agent.errors import InvalidRequest
from mesh_agent.injector import names
from mesh_agent.injector.patch import injected, patch
from mesh_agent.injector.settings import InjectorSettings
from tests.support.json_patch import apply

SETTINGS = InjectorSettings(image="mesh:1.2.3", version="1.2.3")


def pod(**spec: Any) -> dict[str, Any]:
    """A pod of the service `web`."""
    web = {"name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 8080}]}
    return {"metadata": {"name": "web-1"}, "spec": {"serviceAccountName": "web", "containers": [web], **spec}}


def annotated(**annotations: str) -> dict[str, Any]:
    """The same with annotations of ours; `_` stands for `-`."""
    found = pod()
    found["metadata"]["annotations"] = {
        f"mesh.openmesh.io/{name.replace('_', '-')}": value for name, value in annotations.items()
    }
    return found


def container(**fields: Any) -> list[dict[str, Any]]:
    """The containers of a pod: one."""
    return [{"name": "web", "image": "web:1", **fields}]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nobody": (pod(serviceAccountName="default"), "'default' is nobody"),
    "no account": (pod(serviceAccountName=""), "'default' is nobody"),
    "another service": (annotated(service="shop"), "must be the same"),
    "account null": (pod(serviceAccountName=None), "'default' is nobody"),
    "containers null": (pod(containers=None), "spec.containers is empty"),
    "no containers": (pod(containers=[]), "spec.containers is empty"),
    "host network": (pod(hostNetwork=True), "hostNetwork"),
    "windows": (pod(os={"name": "windows"}), "Windows"),
    "envoy's port": (pod(containers=container(ports=[{"containerPort": 15001}])), "port 15001 of container 'web'"),
    "public port": (pod(containers=container(ports=[{"containerPort": 20000}])), "port 20000"),
    "readiness port": (pod(containers=container(ports=[{"containerPort": 20200}])), "port 20200"),
    "probe's port": (
        pod(
            containers=container(ports=[{"containerPort": 20300}], livenessProbe={"tcpSocket": {"port": 8080}}),
        ),
        "port 20300",
    ),
    "unknown port name": (pod(containers=container(livenessProbe={"httpGet": {"port": "admin"}})), "'admin'"),
    "port without end": (pod(containers=container(livenessProbe={"httpGet": {"port": "1" * 5000}})), "probes port"),
    "unknown service port": (annotated(service_port="grpc"), "no container has a TCP port named 'grpc'"),
    "service port of UDP": (
        annotated(service_port="dns")
        | {"spec": pod(containers=container(ports=[{"name": "dns", "containerPort": 53, "protocol": "UDP"}]))["spec"]},
        "no container has a TCP port named 'dns'",
    ),
    "odd wish": (annotated(exclude_outbound_cidrs="ten"), "exclude-outbound-cidrs"),
    "envoy's user": (pod(containers=container(securityContext={"runAsUser": 5995})), "runs as user 5995"),
    "envoy's user by pod": (pod(securityContext={"runAsUser": 5995}), "runs as user 5995"),
    "envoy's files": (pod(containers=container(volumeMounts=[{"name": "mesh", "mountPath": "/x"}])), "mounts a volume"),
    "our init container": (pod(initContainers=[{"name": "mesh-init", "image": "x"}]), "'mesh-init'"),
    "our sidecar": (pod(containers=[{"name": "mesh-sidecar", "image": "x"}]), "'mesh-sidecar'"),
    "our volume": (pod(volumes=[{"name": "mesh", "emptyDir": {}}]), "'mesh' in spec.volumes"),
    "our status": (annotated(status="injected"), "is the injector's"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_pod_that_cannot_be_a_member_is_refused_with_a_reason(case: str) -> None:
    found, reason = REFUSED[case]
    with pytest.raises(InvalidRequest, match=reason.replace("[", r"\[")):
        patch(found, SETTINGS)


def test_a_user_of_its_own_is_no_reason_to_refuse() -> None:
    found = pod(securityContext={"runAsUser": 5995}, containers=container(securityContext={"runAsUser": 1000}))
    assert patch(found, SETTINGS)


def test_ports_of_other_protocols_are_nobody_s_affair() -> None:
    assert patch(pod(containers=container(ports=[{"containerPort": 20000, "protocol": "UDP"}])), SETTINGS)


def test_the_patch_leaves_what_it_was_given_alone() -> None:
    found = pod(containers=container(livenessProbe={"tcpSocket": {"port": 8080}}))
    before = copy.deepcopy(found)
    patch(found, SETTINGS)
    assert found == before


def test_labels_of_others_are_never_written() -> None:
    found = pod()
    found["metadata"]["labels"] = {"pod-template-hash": "x"}
    paths = [operation["path"] for operation in patch(found, SETTINGS)]
    assert "/metadata/labels/mesh.openmesh.io~1injected" in paths
    assert "/metadata/labels" not in paths


def test_ours_run_before_every_other_init_container() -> None:
    found = injected(pod(initContainers=[{"name": "migrate", "image": "x"}]), SETTINGS)
    inits = [each["name"] for each in found["spec"]["initContainers"]]
    assert inits == [names.INIT_CONTAINER, names.SIDECAR_CONTAINER, "migrate"]


def test_a_second_pass_keeps_what_the_api_server_filled_in() -> None:
    found = injected(pod(), SETTINGS)
    for each in found["spec"]["initContainers"]:
        each["terminationMessagePath"] = "/dev/termination-log"
    found["spec"]["volumes"][2]["configMap"]["defaultMode"] = 420
    assert patch(found, SETTINGS) == []


def test_a_container_that_came_since_is_treated_like_the_others() -> None:
    found = injected(pod(containers=container(livenessProbe={"tcpSocket": {"port": 8080}})), SETTINGS)
    found["spec"]["containers"].append({"name": "late", "image": "x", "livenessProbe": {"httpGet": {"port": 9000}}})
    again = apply(found, patch(found, SETTINGS))
    assert again["spec"]["containers"][0]["livenessProbe"] == {"tcpSocket": {"port": 20300}}
    assert again["spec"]["containers"][1]["livenessProbe"] == {"httpGet": {"port": 20301}}
    init = next(each for each in again["spec"]["initContainers"] if each["name"] == names.INIT_CONTAINER)
    assert {"name": names.ENV_PROBES, "value": "20300:8080,20301:9000"} in init["env"]
    assert patch(again, SETTINGS) == []


def test_an_init_container_that_came_since_runs_after_ours() -> None:
    found = injected(pod(), SETTINGS)
    found["spec"]["initContainers"].insert(0, {"name": "early", "image": "x"})
    again = apply(found, patch(found, SETTINGS))
    inits = [each["name"] for each in again["spec"]["initContainers"]]
    assert inits == [names.INIT_CONTAINER, names.SIDECAR_CONTAINER, "early"]


def test_the_token_and_the_mesh_volume_are_ours_alone() -> None:
    found = injected(pod(), SETTINGS)
    mounts = {
        each["name"]: {mount["name"] for mount in each.get("volumeMounts", ())}
        for each in [*found["spec"]["initContainers"], *found["spec"]["containers"]]
    }
    assert mounts[names.INIT_CONTAINER] == {"mesh", "mesh-token", "mesh-ca-bundle"}
    assert mounts[names.SIDECAR_CONTAINER] == {"mesh", "mesh-ca-bundle"}
    assert mounts["web"] == set()


@pytest.mark.parametrize(("grace_s", "sleeps"), [(30, 2), (1, 1), (0, None)])
def test_an_application_sleeps_no_longer_than_it_may_live(grace_s: int, sleeps: int | None) -> None:
    found = injected(pod(terminationGracePeriodSeconds=grace_s), SETTINGS)
    hook = found["spec"]["containers"][0].get("lifecycle", {}).get("preStop")
    assert hook == (None if sleeps is None else {"sleep": {"seconds": sleeps}})


def test_envoy_may_use_every_core() -> None:
    found = injected(pod(), InjectorSettings(image="mesh:1", version="1", concurrency=0))
    assert "--concurrency" not in found["spec"]["initContainers"][1]["args"]


def test_what_is_null_is_as_if_it_were_not_there() -> None:
    fields = {"livenessProbe": None, "lifecycle": {"postStart": None}, "securityContext": None, "env": None}
    nothing = dict.fromkeys(("initContainers", "volumes", "securityContext", "terminationGracePeriodSeconds", "os"))
    found = pod(containers=container(**fields), **nothing)
    found["metadata"] |= {"labels": None, "annotations": None}
    made = injected(found, SETTINGS)
    assert [each["name"] for each in made["spec"]["containers"]] == ["web"]
    assert apply(found, patch(found, SETTINGS)) == made
