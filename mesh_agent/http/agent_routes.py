"""`/v1/agent`: this agent, its pools, its services and checks. Pure."""

import hashlib
from collections.abc import Awaitable
from typing import Any

import msgspec

from mesh_agent.agent import consul_json
from mesh_agent.agent import fields as f
from mesh_agent.agent.fields import Fields
from mesh_agent.errors import InvalidRequest, NotFound
from mesh_agent.http import render
from mesh_agent.http.blocking import Reads, parse_wait
from mesh_agent.http.deps import Deps, Pool
from mesh_agent.http.message import Answer, Request, Response
from mesh_agent.http.routing import Routes
from mesh_agent.model import Status

_HEALTH_CODE = {Status.PASSING: 200, Status.WARNING: 429, Status.CRITICAL: 503}


class AgentRoutes:
    """Routes of the agent."""

    def __init__(self, deps: Deps, reads: Reads) -> None:
        self._deps, self._reads = deps, reads

    def add(self, routes: Routes) -> None:
        """Fill the table."""
        routes.add("GET", "/v1/agent/self", self.self_)
        routes.add("GET", "/v1/agent/members", self.members)
        routes.add("GET", "/v1/agent/metrics", self.metrics)
        routes.add("PUT", "/v1/agent/join/{}", self.join)
        routes.add("PUT", "/v1/agent/leave", self.leave)
        routes.add("PUT", "/v1/agent/force-leave/{}", self.force_leave)
        routes.add("PUT", "/v1/agent/reload", self.reload)
        routes.add("PUT", "/v1/agent/maintenance", self.node_maintenance)
        routes.add("GET", "/v1/agent/services", self.services)
        routes.add("GET", "/v1/agent/service/{}", self.service)
        routes.add("PUT", "/v1/agent/service/register", self.register_service)
        routes.add("PUT", "/v1/agent/service/deregister/{}", self.deregister_service)
        routes.add("PUT", "/v1/agent/service/maintenance/{}", self.service_maintenance)
        routes.add("GET", "/v1/agent/health/service/id/{}", self.health_by_id)
        routes.add("GET", "/v1/agent/health/service/name/{}", self.health_by_name)
        routes.add("GET", "/v1/agent/checks", self.checks)
        routes.add("PUT", "/v1/agent/check/register", self.register_check)
        routes.add("PUT", "/v1/agent/check/deregister/{}", self.deregister_check)
        routes.add("PUT", "/v1/agent/check/pass/{}", lambda r, check: self.update(r, check, Status.PASSING))
        routes.add("PUT", "/v1/agent/check/warn/{}", lambda r, check: self.update(r, check, Status.WARNING))
        routes.add("PUT", "/v1/agent/check/fail/{}", lambda r, check: self.update(r, check, Status.CRITICAL))
        routes.add("PUT", "/v1/agent/check/update/{}", self.update_check)
        for method, operation in (("GET", "list"), ("POST", "install"), ("PUT", "use"), ("DELETE", "remove")):
            routes.add(method, "/v1/operator/keyring", lambda r, operation=operation: self.keyring(r, operation))

    # the agent

    def self_(self, request: Request) -> Answer:
        """What the agent says of itself."""
        config = self._deps.config
        return Response.json(
            {
                "Config": {
                    "Datacenter": config.datacenter,
                    "PrimaryDatacenter": "",
                    "NodeName": config.node_name,
                    "NodeID": self._deps.node_id,
                    "Revision": "",
                    "Server": config.server,
                    "Version": self._deps.version,
                },
                "DebugConfig": {
                    "DNSDomain": config.domain,
                    "DNSAltDomain": config.alt_domain,
                    "ConnectEnabled": True,
                    "TrustDomain": config.trust_domain,
                    "DevMode": config.dev,
                    "DNSPort": config.ports.dns,
                    "GRPCPort": config.ports.grpc,
                },
                "Coord": None,
                "Member": render.member(self._deps.lan.local),
                "Meta": config.node_meta,
                "xDS": {"Ports": {"Plaintext": config.ports.grpc}, "Port": config.ports.grpc},
            }
        )

    def members(self, request: Request) -> Answer:
        """Members of the LAN pool, or with `?wan` of the WAN pool."""
        return Response.json([render.member(each) for each in self._pool(request).members])

    def _pool(self, request: Request) -> Pool:
        if not request.flag("wan"):
            return self._deps.lan
        if self._deps.wan is None:
            raise InvalidRequest("a client agent is not a member of the WAN pool; ask a server")
        return self._deps.wan

    def metrics(self, request: Request) -> Answer:
        """Counters and gauges, as Prometheus or as Consul write them."""
        if request.first("format") == "prometheus":
            kind = "text/plain; version=0.0.4; charset=utf-8"
            return Response(200, self._deps.metrics.prometheus().encode(), [("Content-Type", kind)])
        return Response.json(self._deps.metrics.consul(self._deps.clock.wall()))

    async def join(self, request: Request, address: str) -> Answer:
        """Join a pool through a member."""
        await self._pool(request).join([address])
        return Response()

    async def leave(self, request: Request) -> Answer:
        """Leave gracefully; the agent stops."""
        await self._deps.leave()
        return Response()

    def force_leave(self, request: Request, node: str) -> Answer:
        """Declare a failed member left."""
        prune = request.flag("prune")
        self._pool(request).force_leave(node, prune=prune)
        return Response()

    async def reload(self, request: Request) -> Answer:
        """Read files of definitions again."""
        await self._deps.agent.reload()
        return Response()

    # services

    def services(self, request: Request) -> Answer:
        """Services of this node, by id."""
        found = self._deps.agent.services()
        return Response.json({each.id: self._shown(render.agent_service(each)) for each in found})

    def _shown(self, service: dict[str, Any]) -> dict[str, Any]:
        return service | {"Datacenter": self._deps.own}

    async def service(self, request: Request, service_id: str) -> Answer:
        """One service with a hash of its definition; `?hash=` waits until it is another one."""
        shown = self._hashed(service_id)
        if request.first("hash") and request.first("hash") == shown["ContentHash"]:
            await self._reads.changed(self._deps.agent.listen, parse_wait(request))
            shown = self._hashed(service_id)
        return Response.json(shown, headers=[("X-Consul-ContentHash", shown["ContentHash"])])

    def _hashed(self, service_id: str) -> dict[str, Any]:
        found = self._deps.agent.service(service_id)
        if found is None:
            raise NotFound(f"unknown service ID: {service_id}")
        shown = self._shown(render.agent_service(found))
        digest = hashlib.blake2b(msgspec.json.encode(shown, order="sorted"), digest_size=8).hexdigest()
        return shown | {"ContentHash": digest}

    async def register_service(self, request: Request) -> Answer:
        """Register a service."""
        definition = consul_json.service(f.decode_object(request.body))
        replace = request.flag("replace-existing-checks")
        await self._deps.agent.register_service(definition, replace_existing_checks=replace)
        return Response()

    async def deregister_service(self, request: Request, service_id: str) -> Answer:
        """Deregister a service."""
        await self._deps.agent.deregister_service(service_id)
        return Response()

    async def service_maintenance(self, request: Request, service_id: str) -> Answer:
        """Take a service out of service, or back."""
        enable = _enable(request)
        await self._deps.agent.service_maintenance(service_id, enable=enable, reason=request.first("reason"))
        return Response()

    async def node_maintenance(self, request: Request) -> Answer:
        """Take the node out of service, or back."""
        await self._deps.agent.node_maintenance(enable=_enable(request), reason=request.first("reason"))
        return Response()

    def health_by_id(self, request: Request, service_id: str) -> Answer:
        """Worst status of a service: 200 passing, 429 warning, 503 critical, 404 unknown."""
        found = self._deps.agent.service(service_id)
        return self._health([] if found is None else [service_id], request, f"ServiceId {service_id}", one=True)

    def health_by_name(self, request: Request, name: str) -> Answer:
        """The same of every instance of a name on this node."""
        ids = [each.id for each in self._deps.agent.services() if each.name == name]
        return self._health(ids, request, f"ServiceName {name}", one=False)

    def _health(self, ids: list[str], request: Request, what: str, *, one: bool) -> Answer:
        if not ids:
            reason = f"{what} not found"
            if request.first("format") == "text":
                return _because(Response.text(404, reason), reason)
            empty: Any = {"AggregatedStatus": "critical", "Service": None, "Checks": None}
            return _because(Response.json(empty if one else [], 404), reason)
        shown, worst = [], Status.PASSING
        for service_id in ids:
            status, checks = self._deps.agent.service_health(service_id)
            worst = max(worst, status, key=lambda each: each.severity)
            service = self._deps.agent.service(service_id)
            shown.append(
                {
                    "AggregatedStatus": status.value,
                    "Service": render.agent_service(service) if service else None,
                    "Checks": [render.agent_check(check) for check in checks],
                }
            )
        code = _HEALTH_CODE[worst]
        if request.first("format") == "text":
            return _because(Response.text(code, worst.value), worst.value)
        return _because(Response.json(shown[0] if one else shown, code), worst.value)

    # checks

    def checks(self, request: Request) -> Answer:
        """Checks of this node, by id."""
        return Response.json({each.id: render.agent_check(each) for each in self._deps.agent.checks()})

    async def register_check(self, request: Request) -> Answer:
        """Register a check."""
        await self._deps.agent.register_check(consul_json.check(f.decode_object(request.body)))
        return Response()

    async def deregister_check(self, request: Request, check_id: str) -> Answer:
        """Deregister a check."""
        await self._deps.agent.deregister_check(check_id)
        return Response()

    async def update(self, request: Request, check_id: str, status: Status) -> Answer:
        """A TTL check reports in."""
        await self._deps.agent.update_ttl(check_id, status, request.first("note"))
        return Response()

    def update_check(self, request: Request, check_id: str) -> Awaitable[Answer]:
        """A TTL check reports in, with output."""
        fields = Fields(f.decode_object(request.body))
        status = fields.take("Status", f.text, "")
        output = fields.take("Output", f.text, "")
        fields.done()
        if status not in {each.value for each in Status}:
            raise InvalidRequest(f"Invalid check status: '{status}'")
        return self._update_check(check_id, Status(status), output)

    async def _update_check(self, check_id: str, status: Status, output: str) -> Answer:
        await self._deps.agent.update_ttl(check_id, status, output)
        return Response()

    # keys

    async def keyring(self, request: Request, operation: str) -> Answer:
        """Operate on the keyrings of this agent's pools; `?pool=lan` or `?pool=wan` for one of them."""
        key = ""
        if operation != "list":
            fields = Fields(f.decode_object(request.body))
            key = fields.take("Key", f.text, "")
            fields.ignore("RelayFactor")
            fields.done()
            if not key:
                raise InvalidRequest("Key must not be empty")
        shown = []
        for pool, wan in self._keyed_pools(request):
            answer = await pool.operate_keys(f"{operation}-key" if operation != "list" else "list-keys", key)
            if answer.errors or answer.heard < answer.members:
                said = "; ".join(f"{node}: {text}" for node, text in sorted(answer.errors.items()))
                silent = answer.members - answer.heard
                return Response.text(
                    500,
                    f"{len(answer.errors)}/{answer.members} nodes reported failure, {silent} did not answer. {said}",
                )
            shown.append(
                {
                    "WAN": wan,
                    "Datacenter": self._deps.own,
                    "Segment": "",
                    "Keys": answer.keys,
                    "PrimaryKeys": answer.primary_keys,
                    "NumNodes": answer.members,
                }
            )
        return Response.json(shown) if operation == "list" else Response()

    def _keyed_pools(self, request: Request) -> list[tuple[Pool, bool]]:
        wanted = request.first("pool")
        if wanted not in ("", "lan", "wan"):
            raise InvalidRequest(f"?pool={wanted}: expected lan or wan")
        pools = [(self._deps.lan, False)] if wanted != "wan" else []
        if wanted != "lan" and self._deps.wan is not None:
            pools.append((self._deps.wan, True))
        if not pools:
            raise InvalidRequest("a client agent is not a member of the WAN pool; ask a server")
        if not any(pool.keyring for pool, _ in pools):
            raise InvalidRequest("gossip is not encrypted on this agent: there is no keyring")
        return [(pool, wan) for pool, wan in pools if pool.keyring]


def _because(response: Response, reason: str) -> Response:
    """The reason for a load balancer's log; a header is one line of visible ASCII."""
    visible = "".join(character if " " <= character <= "~" else "?" for character in reason)
    response.headers.append(("X-Consul-Reason", visible))
    return response


def _enable(request: Request) -> bool:
    text = request.first("enable")
    if text.lower() not in ("true", "false", "1", "0"):
        wrong = f'Invalid value for enable: "{text}"' if text else "Missing value for enable"
        raise InvalidRequest(f"{wrong}; say ?enable=true or ?enable=false")
    return text.lower() in ("true", "1")
