"""Certificates to the letter of the X509-SVID standard, the bundle, and the shells that keep them fresh."""

import asyncio
import random
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from mesh_agent.ca.bundle import check_root, root_object, union, verify
from mesh_agent.ca.issue import (
    create_root,
    fingerprint,
    identity_of,
    load_certificate,
    new_csr,
    new_key,
    requested_id,
    sign_csr,
    validity,
)
from mesh_agent.ca.leaf import renewal_at
from mesh_agent.ca.runner import AgentIdentity, CertificateAuthority, LeafCache
from mesh_agent.ca.spiffe_id import SpiffeId, agent_id, agent_of, server_datacenter, service_id
from mesh_agent.clock import ManualClock, SystemClock
from mesh_agent.errors import InvalidRequest, PermissionDenied, Unreachable
from mesh_agent.http.client import HttpClient
from mesh_agent.http.message import Request, Response
from mesh_agent.http.server import HttpServer
from mesh_agent.store.memory import MemoryStore

NOW = 1_700_000_000.0
WEB = service_id("mesh.internal", "dc1", "web")


async def authority(
    clock: ManualClock | SystemClock | None = None, datacenter: str = "dc1", store: MemoryStore | None = None
) -> CertificateAuthority:
    return await CertificateAuthority.open(
        store or MemoryStore(),
        "mesh.internal",
        datacenter,
        clock or ManualClock(wall=NOW),
        root_ttl_s=1e8,
        leaf_ttl_s=3600.0,
        agent_ttl_s=3600.0,
        webhooks=["mesh-injector.mesh-system.svc"],
    )


@pytest.mark.parametrize("text", ["spiffe://mesh.internal", "spiffe://a-b_c.d/x/Y.z", "SPIFFE://td/a"])
def test_spiffe_ids_that_are_allowed(text: str) -> None:
    assert str(SpiffeId.parse(text)).lower() == text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://td/a",
        "spiffe://",
        "spiffe://TD/a",
        "spiffe://td/",
        "spiffe://td//a",
        "spiffe://td/a/",
        "spiffe://td/../a",
        "spiffe://td/./a",
        "spiffe://td:80/a",
        "spiffe://u@td/a",
        "spiffe://td/a?b",
        "spiffe://td/a#b",
        "spiffe://td/%41",
        "spiffe://td/" + "a" * 2048,
        "spiffe://td/ä",
    ],
)
def test_spiffe_ids_that_are_not(text: str) -> None:
    with pytest.raises(InvalidRequest):
        SpiffeId.parse(text)


def test_identities_have_consuls_form() -> None:
    assert str(WEB) == "spiffe://mesh.internal/ns/default/dc/dc1/svc/web"
    server = agent_id("mesh.internal", "dc1", "s1", server=True)
    assert server_datacenter(server) == "dc1"
    assert agent_of(server) == ("dc1", "s1")
    assert server_datacenter(agent_id("mesh.internal", "dc1", "s1", server=False)) is None


def test_names_that_spiffe_forbids_are_written_with_hex_codes() -> None:
    assert str(service_id("td", "dc1", "a b/ä")) == "spiffe://td/ns/default/dc/dc1/svc/a_20b_2F_C3_A4"


def test_a_leaf_is_an_x509_svid() -> None:
    root = create_root("mesh.internal", "dc1", serial=7, now=NOW, ttl_s=1e8)
    leaf = load_certificate(sign_csr(new_csr(WEB, new_key()), root, WEB, serial=9, now=NOW, ttl_s=3600.0))
    extension = leaf.extensions.get_extension_for_class
    assert extension(x509.SubjectAlternativeName).critical
    assert extension(x509.SubjectAlternativeName).value.get_values_for_type(x509.UniformResourceIdentifier) == [
        str(WEB)
    ]
    assert not extension(x509.BasicConstraints).value.ca
    usage = extension(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    assert len(list(extension(x509.ExtendedKeyUsage).value)) == 2
    assert leaf.not_valid_before_utc.timestamp() == NOW - 60


def test_a_root_is_a_ca_of_its_trust_domain() -> None:
    root = create_root("mesh.internal", "dc1", serial=7, now=NOW, ttl_s=1e8).certificate_pem
    check_root(root, "mesh.internal", NOW)
    with pytest.raises(InvalidRequest, match="belongs to"):
        check_root(root, "other", NOW)
    with pytest.raises(InvalidRequest, match="not valid now"):
        check_root(root, "mesh.internal", NOW + 2e8)
    leaf = sign_csr(
        new_csr(WEB, new_key()),
        create_root("mesh.internal", "dc1", serial=7, now=NOW, ttl_s=1e8),
        WEB,
        serial=9,
        now=NOW,
        ttl_s=60,
    )
    with pytest.raises(InvalidRequest):
        check_root(leaf, "mesh.internal", NOW)
    assert root_object(root, "dc1").fingerprint == fingerprint(root)


def test_a_leaf_is_believed_only_through_its_root_and_in_time() -> None:
    ours, theirs = (create_root("mesh.internal", "dc1", serial=n, now=NOW, ttl_s=1e8) for n in (7, 8))
    leaf = sign_csr(new_csr(WEB, new_key()), ours, WEB, serial=9, now=NOW, ttl_s=3600.0)
    assert verify(leaf, union([theirs.certificate_pem], [ours.certificate_pem]), NOW) == WEB
    for roots, when in (([theirs.certificate_pem], NOW), ([], NOW), ([ours.certificate_pem], NOW + 3601)):
        with pytest.raises(PermissionDenied):
            verify(leaf, roots, when)


def test_a_csr_must_be_signed_by_its_own_key_and_name_one_uri() -> None:
    with pytest.raises(InvalidRequest):
        requested_id("junk")
    csr = new_csr(WEB, new_key())
    body = csr.splitlines()
    body[-2] = body[-2][:-8] + ("AAAAAAA=" if not body[-2].endswith("AAAAAAA=") else "BBBBBBB=")
    with pytest.raises(InvalidRequest):
        requested_id("\n".join(body))


async def test_two_servers_that_start_at_once_share_one_authority() -> None:
    store = MemoryStore()
    both = await asyncio.gather(authority(store=store), authority(store=store))
    assert both[0].root_pem == both[1].root_pem


async def test_only_a_service_of_the_node_and_datacenter_gets_its_identity() -> None:
    ca = await authority()
    assert identity_of(ca.sign_service(new_csr(WEB, new_key()), lambda name: name == "web")) == WEB
    for wanted in (
        service_id("mesh.internal", "dc1", "api"),
        service_id("mesh.internal", "dc2", "web"),
        service_id("other", "dc1", "web"),
    ):
        with pytest.raises(PermissionDenied):
            ca.sign_service(new_csr(wanted, new_key()), lambda name: name == "web")
    with pytest.raises(PermissionDenied):
        ca.sign_service(new_csr(agent_id("mesh.internal", "dc1", "s1", server=True), new_key()), lambda name: True)
    with pytest.raises(PermissionDenied):
        ca.sign_agent(new_csr(agent_id("mesh.internal", "dc1", "s1", server=True), new_key()), "s1", server=False)


def test_renewal_falls_between_a_third_and_half_of_life() -> None:
    root = create_root("mesh.internal", "dc1", serial=7, now=NOW, ttl_s=1e8)
    span = validity(sign_csr(new_csr(WEB, new_key()), root, WEB, serial=9, now=NOW, ttl_s=3600.0))
    life = span.not_after - span.not_before
    for seed in range(50):
        assert 0.33 * life <= renewal_at(span, random.Random(seed)) - span.not_before <= 0.5 * life


@pytest.mark.parametrize(
    "names", [(), ("api.default.svc",), ("mesh-injector.mesh-system.svc", "api.default.svc"), ("api.example.com",)]
)
async def test_a_certificate_for_a_webhook_has_the_name_of_a_known_one(names: tuple[str, ...]) -> None:
    ca = await authority()
    csr = new_csr(WEB, new_key())
    assert "BEGIN CERTIFICATE" in ca.sign_webhook(csr, ["mesh-injector.mesh-system.svc"])
    with pytest.raises(PermissionDenied, match=r"kubernetes\.injectors"):
        ca.sign_webhook(csr, names)


class Signer:
    """The road to the authority, which can be cut."""

    def __init__(self, ca: CertificateAuthority) -> None:
        self.ca = ca
        self.calls = 0
        self.cut = False

    async def __call__(self, csr: str) -> str:
        self.calls += 1
        await asyncio.sleep(0)
        if self.cut:
            raise Unreachable("cut")
        return self.ca.sign_service(csr, lambda name: True)


async def test_concurrent_requests_share_one_signing_and_a_restart_needs_none(tmp_path: Path) -> None:
    clock = ManualClock(wall=NOW)
    signer = Signer(await authority(clock))
    cache = LeafCache("mesh.internal", "dc1", signer, tmp_path, clock, random.Random(1))
    leafs = await asyncio.gather(*(cache.leaf("web") for _ in range(5)))
    assert signer.calls == 1
    assert len({leaf.serial for leaf in leafs}) == 1
    assert leafs[0].spiffe_id == str(WEB)
    signer.cut = True
    again = LeafCache("mesh.internal", "dc1", signer, tmp_path, clock, random.Random(1))
    assert (await again.leaf("web")).serial == leafs[0].serial
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}  # noqa: ASYNC240
    with pytest.raises(Unreachable):
        await again.leaf("api")


async def test_a_leaf_is_renewed_in_time_and_the_old_one_served_until_then(tmp_path: Path) -> None:
    clock = ManualClock(wall=NOW)
    signer = Signer(await authority(clock))
    cache = LeafCache("mesh.internal", "dc1", signer, tmp_path, clock, random.Random(1))
    renewed: asyncio.Queue[str] = asyncio.Queue()
    cache.listen("web", lambda leaf: renewed.put_nowait(leaf.serial))
    first = await cache.leaf("web")
    assert await renewed.get() == first.serial
    clock.advance(1900)
    running = asyncio.create_task(cache.run())
    second = await asyncio.wait_for(renewed.get(), 10)
    assert second != first.serial
    assert (await cache.leaf("web")).serial == second
    running.cancel()


async def test_without_a_disk_to_write_to_identities_are_used_from_memory(tmp_path: Path) -> None:
    clock, nowhere = ManualClock(wall=NOW), tmp_path / "gone"
    ca = await authority(clock)
    cache = LeafCache("mesh.internal", "dc1", Signer(ca), nowhere, clock, random.Random(1))
    first = await cache.leaf("web")
    assert (await cache.leaf("web")).serial == first.serial
    own = agent_id("mesh.internal", "dc1", "s1", server=True)
    identity = AgentIdentity(own, nowhere, clock, random.Random(1))
    key, csr = identity.request()
    identity.adopt(ca.sign_agent(csr, "s1", server=True), key, [ca.root_pem])
    assert identity.ready
    assert identity.client_context().get_ca_certs()


async def test_tls_contexts_follow_certificate_and_bundle_while_a_server_listens(tmp_path: Path) -> None:
    clock = SystemClock()
    stores = {name: await authority(clock, name) for name in ("dc1", "dc2")}
    identities = {}
    for name, ca in stores.items():
        directory = tmp_path / name
        directory.mkdir()
        identity = AgentIdentity(agent_id("mesh.internal", name, "s1", server=True), directory, clock, random.Random(1))
        key, csr = identity.request()
        identity.adopt(ca.sign_agent(csr, "s1", server=True), key, [ca.root_pem])
        identities[name] = identity

    def who(request: Request) -> Response:
        return Response.text(200, request.peer.spiffe_id or "nobody")

    server = HttpServer(who)
    port = await server.start("127.0.0.1", 0, identities["dc1"].server_context())
    target = f"https://127.0.0.1:{port}"
    same = HttpClient(identities["dc1"].client_context())
    assert (await same.request("GET", target, "/")).body == b"spiffe://mesh.internal/agent/server/dc/dc1/id/s1"
    stranger = HttpClient(identities["dc2"].client_context())
    with pytest.raises(Unreachable):
        await stranger.request("GET", target, "/")
    for name in identities:
        assert identities[name].set_roots([stores["dc1"].root_pem, stores["dc2"].root_pem])
    friend = HttpClient(identities["dc2"].client_context())
    assert (await friend.request("GET", target, "/")).body == b"spiffe://mesh.internal/agent/server/dc/dc2/id/s1"
    assert identities["dc1"].set_roots([stores["dc1"].root_pem])
    removed = HttpClient(identities["dc2"].client_context())
    with pytest.raises(Unreachable):
        await removed.request("GET", target, "/")
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname = False
    anonymous.verify_mode = ssl.CERT_NONE
    nobody = HttpClient(anonymous)
    assert (await nobody.request("GET", target, "/")).body == b"nobody"
    for client in (same, stranger, friend, removed, nobody):
        await client.close()
    await server.stop()
    again = AgentIdentity(identities["dc1"].spiffe_id, tmp_path / "dc1", clock, random.Random(1))
    assert again.load()
    assert again.certificate_pem == identities["dc1"].certificate_pem
