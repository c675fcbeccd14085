"""The HTTPS port for pods and controllers: who a caller is says Kubernetes (TokenReview), what it may do is decided here.

A pod may exchange its token for a session and nothing else, the accounts of `kubernetes.controllers` may use the routes of the HTTP API that controllers
need, those of `kubernetes.injectors` get the certificate of their own webhook. Everybody else is refused.

Answers of the API server are remembered for a short while, by the token's hash; good tokens and others apart, so that no number of bad ones costs a good one
its place. One address has but a few questions at the API server at a time: who tries tokens keeps nobody else waiting.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from mesh_agent.agent import fields as f
from mesh_agent.agent.fields import Fields
from mesh_agent.clock import Clock
from mesh_agent.errors import InvalidRequest, MeshError, PermissionDenied
from mesh_agent.http.message import Answer, Handler, Request, Response
from mesh_agent.http.routing import error_response
from mesh_agent.kubernetes.permissions import check_node, controllers_may, webhook_of
from mesh_agent.kubernetes.pods import Pod

AUDIENCE = "mesh"
SESSION = "/v1/kubernetes/session"
WEBHOOK = "/v1/kubernetes/webhook-certificate"

_ACCOUNT = "system:serviceaccount:"
_POD_NAME, _POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"
_GOOD_FOR_S, _BAD_FOR_S = 15.0, 2.0
_MOST_REMEMBERED = 1024
_MOST_ASKED = 4
"""Questions to the API server at a time, about tokens from one address."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who holds a token: the service account as `namespace/name`, and the pod that it was issued for (empty if for none)."""

    account: str
    pod_name: str = ""
    pod_uid: str = ""


class TooManyRequests(MeshError):
    """The caller has asked too much at once; nothing was asked of the API server (HTTP 429)."""


class Remembered:
    """Whose tokens were, by digest, for some seconds; what is too much pushes out what is oldest."""

    def __init__(self, for_s: float, most: int = _MOST_REMEMBERED) -> None:
        self._for_s, self._most = for_s, most
        self._known: dict[bytes, tuple[float, Caller | None]] = {}

    def add(self, digest: bytes, caller: Caller | None, now: float) -> None:
        """Remember from now on."""
        self._known.pop(digest, None)
        while len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        self._known[digest] = (now + self._for_s, caller)

    def find(self, digest: bytes, now: float) -> tuple[Caller | None] | None:
        """What is remembered; None for nothing."""
        until, caller = self._known.get(digest, (now, None))
        return (caller,) if until > now else None


class Pods(Protocol):
    """The pods of this node."""

    async def verified(self, uid: str, *, account: str, name: str) -> Pod:
        """The pod that a token was issued for; PermissionDenied."""
        ...

    def session(self, pod: Pod) -> str:
        """The session of a verified pod."""
        ...


Review = Callable[[str, str], Awaitable[dict[str, Any] | None]]
"""(token, audience) -> status of the TokenReview, None for a token that is not good."""
SignWebhook = Callable[[str, tuple[str, ...]], Awaitable[dict[str, Any]]]
"""(CSR, DNS names) -> `certificate` and `roots`."""


class Door:
    """Answers requests on `ports.kubernetes`."""

    def __init__(
        self,
        *,
        datacenter: str,
        trust_domain: str,
        agent_id: str,
        controllers: tuple[str, ...],
        injectors: tuple[str, ...],
        pods: Pods,
        review: Review,
        sign_webhook: SignWebhook,
        public: Handler,
        clock: Clock,
    ) -> None:
        self._datacenter, self._trust_domain, self._agent_id = datacenter, trust_domain, agent_id
        self._controllers, self._injectors = frozenset(controllers), frozenset(injectors)
        self._pods = pods
        self._review = review
        self._sign_webhook = sign_webhook
        self._public = public
        self._clock = clock
        self._good, self._bad = Remembered(_GOOD_FOR_S), Remembered(_BAD_FOR_S)
        self._asking: Counter[str] = Counter()

    async def handle(self, request: Request) -> Answer:
        """Answer one request."""
        try:
            caller = await self._caller(request)
            if caller is None:
                return _unknown()
            if request.path == SESSION:
                return await self._session(request, caller)
            if request.path == WEBHOOK and caller.account in self._injectors:
                return await self._webhook(request, caller)
            self._check(request, caller)
        except TooManyRequests as error:
            return Response(429, str(error).encode(), [("Content-Type", "text/plain"), ("Retry-After", "1")])
        except MeshError as error:
            return error_response(error)
        answer = self._public(request)
        return await answer if isinstance(answer, Awaitable) else answer

    async def _caller(self, request: Request) -> Caller | None:
        """Who asks; None for nobody that Kubernetes knows. TooManyRequests if there is no answer yet to what the same address asked before."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return None
        digest, now = sha256(token.encode()).digest(), self._clock.now()
        known = self._good.find(digest, now) or self._bad.find(digest, now)
        if known is not None:
            return known[0]
        address = request.peer.address
        if self._asking[address] >= _MOST_ASKED:
            raise TooManyRequests(
                f"{_MOST_ASKED} tokens from {address} are being asked about already; try again in a second"
            )
        self._asking[address] += 1
        try:
            status = await self._review(token, AUDIENCE)
        finally:
            self._asking[address] -= 1
            self._asking += Counter()  # forgets addresses without a question
        caller = None if status is None else _caller(status)
        (self._bad if caller is None else self._good).add(digest, caller, self._clock.now())
        return caller

    def _check(self, request: Request, caller: Caller) -> None:
        """PermissionDenied unless these are the controllers, at a route that is theirs."""
        if caller.account in self._controllers and controllers_may(request.method, request.path):
            check_node(request.path, request.body)
            return
        if request.path == WEBHOOK:
            raise PermissionDenied(
                f"service account {caller.account} gets no certificate for a webhook; "
                "if it is an injector's, add it to kubernetes.injectors of this agent's settings"
            )
        if caller.account in self._controllers:
            raise PermissionDenied(
                f"controllers need no {request.method} {request.path}, so service account {caller.account} may not"
            )
        if caller.account in self._injectors:
            raise PermissionDenied(f"service account {caller.account} is an injector's: it may only use {WEBHOOK}")
        raise PermissionDenied(
            f"service account {caller.account} may only ask for a pod session here ({SESSION}); "
            "if it is that of controllers, add it to kubernetes.controllers of this agent's settings"
        )

    async def _session(self, request: Request, caller: Caller) -> Answer:
        if request.method != "POST":
            return Response.text(405, f"{SESSION} takes POST")
        if not caller.pod_uid:
            raise PermissionDenied(
                f"the token of {caller.account} was not issued for a pod; use a projected token of the audience {AUDIENCE!r}"
            )
        pod = await self._pods.verified(caller.pod_uid, account=caller.account, name=caller.pod_name)
        return Response.json(
            {
                "Session": self._pods.session(pod),
                "PodUID": pod.uid,
                "ProxyID": pod.proxy_id,
                "Service": pod.service,
                "Datacenter": self._datacenter,
                "TrustDomain": self._trust_domain,
                "AgentID": self._agent_id,
            }
        )

    async def _webhook(self, request: Request, caller: Caller) -> Answer:
        if request.method != "PUT":
            return Response.text(405, f"{WEBHOOK} takes PUT")
        fields = Fields(f.decode_object(request.body))
        names: tuple[str, ...] = fields.take("DNSNames", f.texts, ())
        csr = fields.take("CSR", f.text, "")
        fields.done()
        own = webhook_of(caller.account)
        if names != (own,):
            raise InvalidRequest(
                f"DNSNames: {list(names)} is not [{own!r}]; an injector's Service is called like its service account"
            )
        signed = await self._sign_webhook(csr, names)
        return Response.json({"Certificate": signed["certificate"], "Roots": signed["roots"]})


def _caller(status: dict[str, Any]) -> Caller | None:
    """Whom a TokenReview speaks of; None for what is no service account."""
    user = status.get("user") or {}
    name = str(user.get("username", ""))
    namespace, _, account = name.removeprefix(_ACCOUNT).partition(":")
    if not name.startswith(_ACCOUNT) or not namespace or not account:
        return None
    extra = user.get("extra") or {}
    return Caller(f"{namespace}/{account}", _first(extra.get(_POD_NAME)), _first(extra.get(_POD_UID)))


def _first(values: Any) -> str:  # decoded JSON
    return str(values[0]) if isinstance(values, list) and values else ""


def _unknown() -> Response:
    text = (
        f"who are you? Send `Authorization: Bearer <token>` with a service account token of the audience {AUDIENCE!r} "
        "that the cluster's API server accepts"
    )
    refusal = Response.text(401, text)
    refusal.headers.append(("WWW-Authenticate", f'Bearer realm="{AUDIENCE}"'))
    return refusal
