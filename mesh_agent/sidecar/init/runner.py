"""Shell of `mesh sidecar init`: prove who the pod is, load the capture rules, write Envoy's bootstrap. It fails closed.

Any error ends it with an exit code, and a pod whose init container failed does not start. The proof comes first, since afterwards this process is
captured like any other.
"""

import asyncio
import json
import logging
import os
import ssl
from pathlib import Path
from typing import Any

import msgspec

from mesh_agent.ca.spiffe_id import SpiffeId, agent_id, agent_of
from mesh_agent.clock import Clock
from mesh_agent.errors import ConfigError, InvalidRequest, MeshError, PermissionDenied, Unreachable
from mesh_agent.http.client import HttpClient
from mesh_agent.injector import names
from mesh_agent.sidecar.bootstrap import PodSidecar, pod_bootstrap, roots_secret
from mesh_agent.sidecar.capture import gateway, nameservers, rules
from mesh_agent.sidecar.pod import PodEnvironment

log = logging.getLogger(__name__)

_SESSION = "/v1/kubernetes/session"
_PAUSE_S = (0.1, 5.0)
_REPEAT_LOG_S = 15.0


class Session(msgspec.Struct, frozen=True, rename="pascal"):
    """What the agent answers to a pod that has proved itself."""

    session: str
    service: str
    datacenter: str
    trust_domain: str
    pod_uid: str = msgspec.field(name="PodUID")
    proxy_id: str = msgspec.field(name="ProxyID")
    agent_id: str = msgspec.field(name="AgentID")


class PodInit:
    """One run in one pod. `root` is where its files are (for tests)."""

    def __init__(
        self, environment: PodEnvironment, clock: Clock, *, directory: Path, root: Path = Path("/"), patience_s: float
    ) -> None:
        self._environment, self._clock = environment, clock
        self._directory, self._root = directory, root
        self._patience_s = patience_s

    async def run(self) -> None:
        """Do all of it; MeshError says what failed, and then the pod must not start."""
        session = await self.prove()
        text = self.rules()
        await load(text)
        log.info("all TCP of this pod goes through its sidecar now")
        self.write(session)
        log.info("this pod is service %s of datacenter %s", session.service, session.datacenter)

    # proof

    async def prove(self) -> Session:
        """Exchange the token for a session; tries again for `patience_s`, saying why, then raises the last error."""
        began, said_at, said = self._clock.now(), float("-inf"), ""
        pause_s, longest_s = _PAUSE_S
        while True:
            try:
                return await self._exchange()
            except MeshError as error:
                if self._clock.now() - began >= self._patience_s:
                    raise
                if str(error) != said or self._clock.now() - said_at >= _REPEAT_LOG_S:
                    said, said_at = str(error), self._clock.now()
                    log.warning("no session yet, trying again: %s", said)
            await asyncio.sleep(pause_s)
            pause_s = min(longest_s, pause_s * 1.5)

    async def _exchange(self) -> Session:
        environment = self._environment
        token = _read(Path(environment.token_file), "the pod's token")
        target = f"https://{_host(environment.node_ip)}:{environment.agent_port}"
        client = HttpClient(self._context(), verify=_verify_agent)
        try:
            headers = {"Authorization": f"Bearer {token.strip()}"}
            answer = await client.request("POST", target, _SESSION, headers=headers, timeout_s=15.0)
        finally:
            await client.close()
        text = answer.body.decode("utf-8", "replace").strip()
        if answer.status in (401, 403):
            raise PermissionDenied(f"the agent of this node refuses: {text}")
        if answer.status != 200:
            raise Unreachable(f"{target} answers {answer.status}: {text}")
        try:
            session = msgspec.json.decode(answer.body, type=Session)
        except msgspec.MsgspecError as error:
            raise Unreachable(f"{target} answers something else: {error}") from error
        if session.pod_uid != environment.pod_uid:
            raise PermissionDenied(f"the token is of pod {session.pod_uid}, this is pod {environment.pod_uid}")
        return session

    def _context(self) -> ssl.SSLContext:
        path = self._environment.ca_file
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # an agent is known by its SPIFFE ID
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise Unreachable(
                f"{path} has no trust bundle yet ({error}); the mesh controller keeps it in ConfigMap {names.CA_CONFIG_MAP}"
            ) from error
        return context

    # capture

    def rules(self) -> str:
        """The rules for the network that this pod has."""
        found = gateway(_read(self._root / "proc/net/route", "the pod's routes"))
        servers = nameservers(_read(self._root / "etc/resolv.conf", "the pod's name servers"))
        return rules(self._environment.capture(gateway=found, nameservers=servers))

    # bootstrap

    def write(self, session: Session) -> None:
        """Write what Envoy starts from; ConfigError if that cannot be."""
        environment = self._environment
        node = agent_of(SpiffeId.parse(session.agent_id))
        if node is None:
            raise PermissionDenied(f"{session.agent_id} is not an agent")
        secret = self._directory / "agent-roots.json"
        sidecar = PodSidecar(
            proxy_id=session.proxy_id,
            service=session.service,
            pod_uid=session.pod_uid,
            session=session.session,
            agent_address=environment.node_ip,
            agent_port=environment.xds_port,
            agent_ids=tuple(
                str(agent_id(session.trust_domain, session.datacenter, node[1], server=server))
                for server in (False, True)
            ),
            ready_address=environment.pod_ip,
            ready_port=names.READY_PORT,
            ready_path=names.READY_PATH,
            roots_secret=str(secret),
        )
        _write(secret, roots_secret(environment.ca_file))
        _write(self._directory / "bootstrap.json", pod_bootstrap(sidecar))


def _verify_agent(connection: Any) -> None:
    """Only an agent may be asked; its roots were verified by the handshake."""
    names_of = (connection.getpeercert() or {}).get("subjectAltName", ())
    uris = [value for kind, value in names_of if kind == "URI"]
    try:
        good = len(uris) == 1 and agent_of(SpiffeId.parse(uris[0])) is not None
    except InvalidRequest:
        good = False
    if not good:
        raise Unreachable(f"the peer is {uris or 'nobody of the mesh'}, not an agent")


async def load(text: str) -> None:
    """Load rules in one transaction; ConfigError with nft's words, and then nothing of them is loaded."""
    try:
        process = await asyncio.create_subprocess_exec(
            *("nft", "-f", "-"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise ConfigError(f"nft cannot be run: {error}; the image of the init container must have nftables") from error
    output, _ = await process.communicate(text.encode())
    if process.returncode:
        raise ConfigError(
            f"the capture rules cannot be loaded (nft ends with {process.returncode}): {output.decode('utf-8', 'replace').strip()}; "
            "the init container needs user 0 and NET_ADMIN, the kernel nf_tables with nat"
        )


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unreachable(f"{what} cannot be read: {error}") from error


def _write(path: Path, content: dict[str, Any]) -> None:
    """For this user and its group, which is Envoy's."""
    try:
        fresh = path.with_name(path.name + ".new")
        with open(fresh, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o640)) as file:
            json.dump(content, file)
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
