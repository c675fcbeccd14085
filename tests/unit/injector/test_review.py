"""Admission reviews: who is injected, what a refusal looks like, what is no review at all."""

import base64
import json
from typing import Any

import pytest

from mesh_agent.errors import InvalidRequest
from mesh_agent.injector.review import Verdict, answer
from mesh_agent.injector.settings import InjectorSettings
from tests.support.json_patch import apply
from tests.unit.injector.test_patch import annotated, pod

SETTINGS = InjectorSettings(image="mesh:1.2.3", version="1.2.3")


def review(found: dict[str, Any], **changes: Any) -> bytes:
    """A review as the API server sends it."""
    request = {
        "uid": "u-1",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "namespace": "shop",
        "object": found,
    }
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request} | changes
    return json.dumps(body).encode()


def ask(found: dict[str, Any], *, by_default: bool = True) -> Verdict:
    return answer(review(found), SETTINGS, by_default=by_default)


@pytest.mark.parametrize(
    ("wish", "by_default", "outcome"),
    [
        (None, True, "injected"),
        (None, False, "skipped"),
        ("true", False, "injected"),
        ("true", True, "injected"),
        ("false", True, "skipped"),
        ("false", False, "skipped"),
        ("maybe", True, "refused"),
    ],
)
def test_the_annotation_counts_more_than_the_namespace(wish: str | None, by_default: bool, outcome: str) -> None:
    found = pod() if wish is None else annotated(inject=wish)
    assert ask(found, by_default=by_default).outcome == outcome


def test_consuls_annotation_is_understood() -> None:
    found = pod()
    found["metadata"]["annotations"] = {"consul.hashicorp.com/connect-inject": "false"}
    assert ask(found).outcome == "skipped"


def test_the_answer_holds_the_patch() -> None:
    verdict = ask(pod())
    response = verdict.review["response"]
    assert verdict.review["apiVersion"] == "admission.k8s.io/v1"
    assert (response["uid"], response["allowed"], response["patchType"]) == ("u-1", True, "JSONPatch")
    found = apply(pod(), json.loads(base64.b64decode(response["patch"])))
    assert found["metadata"]["labels"] == {"mesh.openmesh.io/injected": "true"}
    assert verdict.pod == "shop/web-1"
    again = ask(found)
    assert again.outcome == "unchanged"
    assert "patch" not in again.review["response"]


def test_a_refusal_says_why() -> None:
    response = ask(pod(hostNetwork=True)).review["response"]
    assert response["allowed"] is False
    assert response["status"]["message"].startswith("mesh: a pod with hostNetwork")


def test_a_pod_that_is_left_alone_may_be_anything() -> None:
    found = annotated(inject="false")
    found["spec"]["hostNetwork"] = True
    assert ask(found).review["response"] == {"uid": "u-1", "allowed": True}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"request": null}',
        review(pod(), apiVersion="admission.k8s.io/v1beta1"),
        review(pod(), request={"uid": "u", "kind": {"kind": "Service"}, "object": {"metadata": {}, "spec": {"x": 1}}}),
        review(pod(), request={"uid": "u", "kind": {"kind": "Pod"}, "object": None}),
        b"\xff",
    ],
)
def test_what_is_no_review_of_a_pod_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        answer(body, SETTINGS, by_default=True)
