"""Answers to admission reviews (admission.k8s.io/v1). Pure.

Which pods are reviewed at all is decided by the webhook's selectors; the question is whether the pod's annotation wants something else than its namespace.
"""

import base64
from dataclasses import dataclass
from typing import Any

import msgspec

from mesh_agent.errors import InvalidRequest
from mesh_agent.injector.patch import patch
from mesh_agent.injector.settings import InjectorSettings
from mesh_agent.kubernetes import annotations

API_VERSION = "admission.k8s.io/v1"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a review as JSON, and for logs and metrics what became of which pod: injected, unchanged, skipped or refused."""

    review: dict[str, Any]
    outcome: str
    pod: str
    reason: str = ""


def answer(body: bytes, settings: InjectorSettings, *, by_default: bool) -> Verdict:
    """Review a pod; `by_default`: inject it unless its annotation says no (else: only if it says yes). InvalidRequest if `body` is no review."""
    request = _request(body)
    pod = request["object"]
    name = _name(request, pod)
    try:
        wanted = annotations.read(pod["metadata"].get("annotations") or {}).inject
        if not (by_default if wanted is None else wanted):
            return Verdict(_review(request, {"allowed": True}), "skipped", name)
        operations = patch(pod, settings)
    except InvalidRequest as error:
        return Verdict(_refusal(request, str(error)), "refused", name, str(error))
    if not operations:
        return Verdict(_review(request, {"allowed": True}), "unchanged", name)
    encoded = base64.b64encode(msgspec.json.encode(operations)).decode()
    return Verdict(_review(request, {"allowed": True, "patchType": "JSONPatch", "patch": encoded}), "injected", name)


def _request(body: bytes) -> dict[str, Any]:
    try:
        review = msgspec.json.decode(body)
        request: dict[str, Any] = review["request"]
        if not (request["uid"] and isinstance(request["object"]["metadata"], dict) and request["object"]["spec"]):
            raise TypeError("incomplete")
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise InvalidRequest(f"not an AdmissionReview of a pod: {error!r}") from error
    if review.get("apiVersion") != API_VERSION or (request.get("kind") or {}).get("kind") != "Pod":
        raise InvalidRequest(f"not an AdmissionReview of a pod in {API_VERSION}")
    return request


def _name(request: dict[str, Any], pod: dict[str, Any]) -> str:
    metadata = pod["metadata"]
    return f"{request.get('namespace', '')}/{metadata.get('name') or metadata.get('generateName', '') + '*'}"


def _review(request: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": {"uid": request["uid"], **response}}


def _refusal(request: dict[str, Any], reason: str) -> dict[str, Any]:
    status = {"code": 400, "reason": "BadRequest", "message": f"mesh: {reason}"}
    return _review(request, {"allowed": False, "status": status})
