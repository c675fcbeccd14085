"""Shells of the CA: the authority of a datacenter (on servers), the agent's own identity, and the leafs of its services.

Private keys are made where they are used and never travel: a leaf's key stays on its node (mode 0600), the authority's in the store below `ca/`, which
no View, stream or route gives out.
"""

import asyncio
import contextlib
import logging
import os
import random
import secrets
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from mesh_agent.ca.bundle import check_root, union
from mesh_agent.ca.issue import (
    Authority,
    create_root,
    fingerprint,
    identity_of,
    key_matches,
    new_csr,
    new_key,
    requested_id,
    serial_of,
    sign_csr,
    sign_webhook_csr,
    validity,
)
from mesh_agent.ca.leaf import renewal_at, retry_after_s, usable
from mesh_agent.ca.spiffe_id import SpiffeId, agent_id, service_id
from mesh_agent.clock import Clock
from mesh_agent.errors import InvalidRequest, MeshError, PermissionDenied, StoreConflict, Unreachable
from mesh_agent.store import Store

log = logging.getLogger(__name__)

AUTHORITY_KEY = "ca/authority"
Sign = Callable[[str], Awaitable[str]]


def _serial() -> int:
    """A random positive serial of at most 20 bytes (RFC 5280, 4.1.2.2)."""
    return secrets.randbits(158) | (1 << 157)


class CertificateAuthority:
    """Signs what is asked for when the asker may have it. One authority for each datacenter, shared by its servers through the store."""

    def __init__(
        self,
        authority: Authority,
        trust_domain: str,
        datacenter: str,
        clock: Clock,
        *,
        leaf_ttl_s: float,
        agent_ttl_s: float,
        webhooks: Iterable[str] = (),
    ) -> None:
        """`webhooks`: names (`<service>.<namespace>.svc`) of which an agent may get a server certificate; no other is signed."""
        self.trust_domain = trust_domain
        self._authority = authority
        self._datacenter = datacenter
        self._clock = clock
        self._leaf_ttl_s = leaf_ttl_s
        self._agent_ttl_s = agent_ttl_s
        self._webhooks = frozenset(webhooks)

    @classmethod
    async def open(
        cls,
        store: Store,
        trust_domain: str,
        datacenter: str,
        clock: Clock,
        *,
        root_ttl_s: float,
        leaf_ttl_s: float,
        agent_ttl_s: float,
        webhooks: Iterable[str] = (),
    ) -> "CertificateAuthority":
        """Load the datacenter's authority, or make it; when several servers start at once, the first one's is used by all."""
        record = await store.get(AUTHORITY_KEY)
        if record is None:
            fresh = create_root(trust_domain, datacenter, serial=_serial(), now=clock.wall(), ttl_s=root_ttl_s)
            with contextlib.suppress(StoreConflict):
                await store.commit(
                    puts={AUTHORITY_KEY: msgspec.json.encode(fresh._asdict())}, expect={AUTHORITY_KEY: 0}
                )
                log.info(
                    "made the certificate authority of datacenter %s, root %s",
                    datacenter,
                    fingerprint(fresh.certificate_pem),
                )
            record = await store.get(AUTHORITY_KEY)
            if record is None:
                raise StoreConflict("the certificate authority vanished from the store while it was read")
        authority = Authority(**msgspec.json.decode(record.value))
        check_root(authority.certificate_pem, trust_domain, clock.wall())
        return cls(
            authority,
            trust_domain,
            datacenter,
            clock,
            leaf_ttl_s=leaf_ttl_s,
            agent_ttl_s=agent_ttl_s,
            webhooks=webhooks,
        )

    @property
    def root_pem(self) -> str:
        """The root that leafs are issued from now."""
        return self._authority.certificate_pem

    def sign_service(self, csr_pem: str, may_be: Callable[[str], bool]) -> str:
        """A leaf for a service of this datacenter; `may_be(service)` says whether the asker runs it. PermissionDenied otherwise."""
        asked = requested_id(csr_pem)
        wanted = asked.path[5] if len(asked.path) == 6 else ""
        if not wanted or asked != service_id(self.trust_domain, self._datacenter, wanted):
            raise PermissionDenied(f"{asked} is not the identity of a service of datacenter {self._datacenter!r}")
        if not may_be(wanted):
            raise PermissionDenied(
                f"service {wanted!r} is not registered on the node that asks for its identity; register it there first"
            )
        return self._sign(csr_pem, asked, self._leaf_ttl_s)

    def sign_agent(self, csr_pem: str, node: str, *, server: bool) -> str:
        """The identity of an agent."""
        asked = requested_id(csr_pem)
        allowed = agent_id(self.trust_domain, self._datacenter, node, server=server)
        if asked != allowed:
            raise PermissionDenied(f"the CSR asks for {asked}, this agent may only be {allowed}")
        return self._sign(csr_pem, asked, self._agent_ttl_s)

    def sign_webhook(self, csr_pem: str, dns_names: Sequence[str]) -> str:
        """A server certificate for the webhook of an injector that is known here; PermissionDenied for any other name."""
        strange = sorted(set(dns_names) - self._webhooks)
        if strange or not dns_names:
            raise PermissionDenied(
                f"no certificate is signed for {strange or 'no name'}: known webhooks are {sorted(self._webhooks)}; "
                "kubernetes.injectors of the servers' settings says which service accounts (namespace/name) have one"
            )
        return sign_webhook_csr(
            csr_pem, self._authority, dns_names, serial=_serial(), now=self._clock.wall(), ttl_s=self._agent_ttl_s
        )

    def _sign(self, csr_pem: str, identity: SpiffeId, ttl_s: float) -> str:
        return sign_csr(csr_pem, self._authority, identity, serial=_serial(), now=self._clock.wall(), ttl_s=ttl_s)


class _Saved(msgspec.Struct, frozen=True):
    """A certificate on disk."""

    certificate: str
    key: str
    roots: list[str] = []


class AgentIdentity:
    """The agent's own certificate and the trust bundle, as TLS contexts that change while connections go on."""

    def __init__(self, spiffe_id: SpiffeId, directory: Path, clock: Clock, rng: random.Random) -> None:
        self.spiffe_id = spiffe_id
        self.trust_domain = spiffe_id.trust_domain
        self.certificate_pem = ""
        self.roots: tuple[str, ...] = ()
        self.credential = ("", "")
        """Certificate and key in use, PEM; replaced as one, so that any thread may look."""
        self._key_pem = ""
        self._path = directory / "agent.json"
        self._clock = clock
        self._rng = rng
        self._client: ssl.SSLContext | None = None
        self._server: ssl.SSLContext | None = None
        self._front: ssl.SSLContext | None = None
        self._strict_front: ssl.SSLContext | None = None
        self._changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether there is a certificate that can still be used, and a bundle."""
        return bool(self.certificate_pem and self.roots) and usable(validity(self.certificate_pem), self._clock.wall())

    def load(self) -> bool:
        """Take over what an earlier run saved, if it is still good."""
        try:
            saved = msgspec.json.decode(self._path.read_bytes(), type=_Saved)
            if identity_of(saved.certificate) == self.spiffe_id and key_matches(saved.certificate, saved.key):
                self.certificate_pem, self._key_pem = saved.certificate, saved.key
                self.roots = union(saved.roots)
        except FileNotFoundError:
            return False
        except (OSError, msgspec.MsgspecError, InvalidRequest) as error:
            log.warning("the saved identity cannot be used: %s", error)
            return False
        if self.ready:
            self._rebuild()
        return self.ready

    def request(self) -> tuple[str, str]:
        """A fresh key and a CSR for this agent's identity."""
        key = new_key()
        return key, new_csr(self.spiffe_id, key)

    def adopt(self, certificate_pem: str, key_pem: str, roots: Iterable[str]) -> None:
        """Use a new certificate from now on; connections that exist keep theirs."""
        if identity_of(certificate_pem) != self.spiffe_id or not key_matches(certificate_pem, key_pem):
            raise PermissionDenied(f"the certificate that was issued is not one for {self.spiffe_id}")
        self.certificate_pem, self._key_pem = certificate_pem, key_pem
        self.roots = union(self.roots, roots)
        self._save()

    def set_roots(self, roots: Iterable[str]) -> bool:
        """Believe exactly these roots from now on; returns whether that changed anything. An empty bundle is ignored."""
        fresh = union(roots)
        if not fresh or fresh == self.roots:
            return False
        self.roots = fresh
        if self.certificate_pem:
            self._save()
        return True

    def _save(self) -> None:
        _save(self._path, _Saved(self.certificate_pem, self._key_pem, list(self.roots)))
        self._rebuild()
        self._changed.set()

    def _rebuild(self) -> None:
        self.credential = (self.certificate_pem, self._key_pem)
        self._client = self._context(ssl.PROTOCOL_TLS_CLIENT, ssl.CERT_REQUIRED)
        self._server = self._context(ssl.PROTOCOL_TLS_SERVER, ssl.CERT_OPTIONAL)

    def _context(self, protocol: int, mode: ssl.VerifyMode) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.check_hostname = False  # peers are known by their SPIFFE ID, not by a host name
        context.verify_mode = mode
        context.minimum_version = (
            ssl.TLSVersion.TLSv1_3 if protocol == ssl.PROTOCOL_TLS_CLIENT else ssl.TLSVersion.TLSv1_2
        )
        context.load_verify_locations(cadata="".join(self.roots))
        _load_chain(context, (self.certificate_pem + self._key_pem).encode())
        return context

    def client_context(self) -> ssl.SSLContext:
        """The context to connect with: another object after each change."""
        if self._client is None:
            raise Unreachable("this agent has no identity yet; it has not reached a server that would issue one")
        return self._client

    def server_context(self, *, require: bool = False) -> ssl.SSLContext:
        """A context to listen with, for the life of the process: each handshake uses the newest certificate and bundle.

        Client certificates are verified if they are presented; with `require` a client without one is refused.
        """
        if self._server is None:
            raise Unreachable("this agent has no identity yet")
        mode = ssl.CERT_REQUIRED if require else ssl.CERT_OPTIONAL
        front = self._context(ssl.PROTOCOL_TLS_SERVER, mode)

        def newest(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            if self._server is not None:
                connection.context = self._server

        front.sni_callback = newest
        return front

    async def keep(self, sign: Sign) -> None:
        """Renew the certificate between a third and half of its life, for ever; `sign` takes a CSR and returns the certificate."""
        failures = 0
        while True:
            self._changed.clear()
            due = (
                renewal_at(validity(self.certificate_pem), self._rng)
                if failures == 0
                else self._clock.wall() + retry_after_s(failures, self._rng)
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - self._clock.wall())):
                    await self._changed.wait()
                continue
            key, csr = self.request()
            try:
                self.adopt(await sign(csr), key, ())
                failures = 0
            except MeshError as error:
                failures += 1
                log.warning("the agent's certificate could not be renewed, trying again: %s", error)


@dataclass(frozen=True, slots=True)
class Leaf:
    """The certificate of a service on this node, with its key; `index` grows with every renewal."""

    service: str
    spiffe_id: str
    certificate_pem: str
    key_pem: str
    serial: str
    not_before: float
    not_after: float
    index: int


class _Entry:
    """What the cache keeps for one service."""

    def __init__(self) -> None:
        self.leaf: Leaf | None = None
        self.renew_at = 0.0
        self.failures = 0
        self.used = True
        self.pending: asyncio.Task[Leaf] | None = None
        self.listeners: list[Callable[[Leaf], None]] = []


class LeafCache:
    """Leafs of the services of this node: obtained once, renewed in time, kept on disk, served while the servers are gone."""

    def __init__(
        self, trust_domain: str, datacenter: str, sign: Sign, directory: Path, clock: Clock, rng: random.Random
    ) -> None:
        self._trust_domain = trust_domain
        self._datacenter = datacenter
        self._sign = sign
        self._directory = directory
        self._clock = clock
        self._rng = rng
        self._entries: dict[str, _Entry] = {}
        self._index = 0
        self._wake = asyncio.Event()

    async def leaf(self, service: str) -> Leaf:
        """The current leaf of `service`; asks for one if there is none. PermissionDenied, Unreachable as the signer says."""
        entry = self._entry(service)
        entry.used = True
        if entry.leaf is not None and entry.leaf.not_after > self._clock.wall():
            return entry.leaf
        if entry.pending is None:
            entry.pending = asyncio.get_running_loop().create_task(self._obtain(service, entry))
            entry.pending.add_done_callback(lambda done: self._obtained(entry, done))
        return await asyncio.shield(entry.pending)

    def listen(self, service: str, listener: Callable[[Leaf], None]) -> Callable[[], None]:
        """Call `listener(leaf)` after each renewal; the returned function stops that."""
        entry = self._entry(service)
        entry.listeners.append(listener)

        def stop() -> None:
            if listener in entry.listeners:
                entry.listeners.remove(listener)

        return stop

    async def run(self) -> None:
        """Renew what is due, for ever."""
        while True:
            self._wake.clear()
            due = [entry.renew_at for entry in self._entries.values() if entry.leaf is not None]
            wait_s = max(0.0, min(due) - self._clock.wall()) if due else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
                continue
            for service, entry in tuple(self._entries.items()):
                if entry.leaf is not None and entry.renew_at <= self._clock.wall():
                    await self._renew(service, entry)

    async def _renew(self, service: str, entry: _Entry) -> None:
        if not entry.used and not entry.listeners:
            del self._entries[service]
            self._path(service).unlink(missing_ok=True)
            return
        entry.used = False
        try:
            await self._obtain(service, entry)
        except MeshError as error:
            entry.failures += 1
            entry.renew_at = self._clock.wall() + retry_after_s(entry.failures, self._rng)
            log.warning("the certificate of service %s could not be renewed, trying again: %s", service, error)

    async def _obtain(self, service: str, entry: _Entry) -> Leaf:
        key = new_key()
        identity = service_id(self._trust_domain, self._datacenter, service)
        certificate = await self._sign(new_csr(identity, key))
        if identity_of(certificate) != identity or not key_matches(certificate, key):
            raise PermissionDenied(f"the certificate that was issued is not one for {identity}")
        _save(self._path(service), _Saved(certificate, key))
        leaf = self._adopt(service, entry, certificate, key)
        for listener in tuple(entry.listeners):
            listener(leaf)
        return leaf

    def _adopt(self, service: str, entry: _Entry, certificate: str, key: str) -> Leaf:
        self._index = max(self._index + 1, int(self._clock.wall()))  # grows across restarts too
        span = validity(certificate)
        spiffe_id = str(identity_of(certificate))
        leaf = Leaf(
            service, spiffe_id, certificate, key, serial_of(certificate), span.not_before, span.not_after, self._index
        )
        entry.leaf, entry.failures, entry.renew_at = leaf, 0, renewal_at(span, self._rng)
        self._wake.set()
        return leaf

    def _obtained(self, entry: _Entry, done: "asyncio.Task[Leaf]") -> None:
        entry.pending = None
        if not done.cancelled():
            done.exception()  # every waiter has it; without a waiter it is nobody's

    def _entry(self, service: str) -> _Entry:
        entry = self._entries.get(service)
        if entry is None:
            entry = self._entries[service] = _Entry()
            self._restore(service, entry)
        return entry

    def _restore(self, service: str, entry: _Entry) -> None:
        try:
            saved = msgspec.json.decode(self._path(service).read_bytes(), type=_Saved)
            wanted = service_id(self._trust_domain, self._datacenter, service)
            good = identity_of(saved.certificate) == wanted and key_matches(saved.certificate, saved.key)
            if good and usable(validity(saved.certificate), self._clock.wall()):
                self._adopt(service, entry, saved.certificate, saved.key)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError, InvalidRequest) as error:
            log.warning("the saved certificate of service %s cannot be used: %s", service, error)

    def _path(self, service: str) -> Path:
        return self._directory / f"leaf-{quote(service, safe='')}.json"


def _save(path: Path, saved: _Saved) -> None:
    """For the next run; without a disk to write to, this one goes on and the next asks for a new certificate."""
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_bytes(msgspec.json.encode(saved))
        fresh.replace(path)
    except OSError as error:
        log.error("a certificate is in use and cannot be kept on disk: %s; check %s", error, path.parent)


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    """ssl reads certificate and key from files alone: this one never reaches a disk."""
    memory = os.memfd_create("chain", os.MFD_CLOEXEC)
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
