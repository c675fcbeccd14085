"""Every workload meets the Pod Security level `restricted`, or says in its template which level it needs and why."""

from typing import Any

import pytest

from tests.support.charts import CASES, case, pods

ALLOWED = "mesh.openmesh.io/pod-security"


def violations(spec: dict[str, Any]) -> list[str]:
    """What `restricted` forbids. Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    found += [f"volume {each['name']}" for each in spec.get("volumes", ()) if "hostPath" in each]
    pod = spec.get("securityContext", {})
    for container in [*spec.get("initContainers", ()), *spec["containers"]]:
        found += [f"{container['name']}: {each}" for each in _container(container.get("securityContext", {}), pod)]
        found += [f"{container['name']}: host port" for port in container.get("ports", ()) if port.get("hostPort")]
    return found


def _container(own: dict[str, Any], pod: dict[str, Any]) -> list[str]:
    both = {**pod, **own}
    found = [] if both.get("runAsNonRoot") else ["may run as root"]
    found += ["runs as root"] if both.get("runAsUser") == 0 else []
    found += [] if own.get("allowPrivilegeEscalation") is False else ["may gain privileges"]
    found += [] if own.get("capabilities", {}).get("drop") == ["ALL"] else ["keeps capabilities"]
    found += ["adds capabilities"] if own.get("capabilities", {}).get("add") else []
    found += [] if both.get("seccompProfile", {}).get("type") == "RuntimeDefault" else ["no seccomp profile"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_workload_is_restricted_or_says_why_not(name: str) -> None:
    for each in case(name).objects:
        said = each.get("spec", {}).get("template", {}).get("metadata", {}).get("annotations", {}).get(ALLOWED)
        for spec in pods(each):
            found = violations(spec)
            assert bool(found) == (said == "privileged"), f"{each['metadata']['name']}: {found}"


@pytest.mark.parametrize("name", CASES)
def test_every_container_writes_nowhere_and_has_limits(name: str) -> None:
    for each in case(name).objects:
        for spec in pods(each):
            for container in spec["containers"]:
                assert container["securityContext"]["readOnlyRootFilesystem"] is True
                assert container["resources"]["limits"]["memory"]
                assert container["resources"]["requests"]["cpu"]


def test_the_check_finds_what_is_forbidden() -> None:
    """A test of the test: each rule can fail."""
    good = {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert violations({"containers": [{"name": "c", "securityContext": good}]}) == []
    for key in good:
        bad = {name: value for name, value in good.items() if name != key}
        assert violations({"containers": [{"name": "c", "securityContext": bad}]}) != [], key
    assert violations({"containers": [{"name": "c", "securityContext": {**good, "runAsUser": 0}}]}) != []
    assert violations({"hostNetwork": True, "containers": []}) == ["hostNetwork"]
