"""A real API server of Kubernetes on loopback: etcd and kube-apiserver as plain processes, without nodes and without controllers.

Nothing schedules pods, fills in EndpointSlices or ends namespaces here: a test makes what it needs. `KubeApiServer` may be shared by the tests of a module;
`wipe` takes away what one of them left. The programs are those of `mesh artifacts` (see docs/artifacts.md).
"""

import asyncio
import contextlib
import datetime
import ipaddress
import secrets
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mesh_agent.artifacts.layout import version_key
from mesh_agent.errors import NotFound, Unreachable
from mesh_agent.kubernetes.client import KubernetesApi
from mesh_agent.lab.machine import home
from tests.support.ports import free_port

ADDRESS = "127.0.0.1"
CRDS = Path(__file__).parents[2] / "charts/mesh/crds"
_START_S = 90.0
_WIPED = (
    "/api/v1/pods",
    "/api/v1/configmaps",
    "/api/v1/services",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/apis/coordination.k8s.io/v1/leases",
    "/apis/mesh.openmesh.io/v1alpha1/servicedefaults",
    "/apis/mesh.openmesh.io/v1alpha1/serviceintentions",
    "/apis/mesh.openmesh.io/v1alpha1/proxydefaults",
)


def program(artifact: str, name: str) -> Path:
    """A program of the newest artifact of that name; the test fails, loudly, without it."""
    root = home() / "artifacts"
    found = sorted(root.glob(f"{artifact}-*/{name}"), key=lambda path: version_key(path.parent.name))
    if not found:
        pytest.fail(f"{root} holds no {artifact}: `mesh artifacts build {artifact}` makes it (make test does)")
    return found[-1]


class Process:
    """A program with its output in a file."""

    def __init__(self, log: Path, *command: str) -> None:
        self.log = log
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def stop(self, *, kill: bool = False) -> None:
        if self._process is None:
            return
        self._process.kill() if kill else self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def check(self) -> None:
        """Fail with the log if it has ended."""
        if self._process is not None and self._process.poll() is not None:
            pytest.fail(f"{self._command[0]} ended with {self._process.returncode}: {self.log.read_text()[-3000:]}")


class KubeApiServer:
    """etcd and kube-apiserver; `start` takes some seconds."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port, self._etcd_port, peer_port = free_port(), free_port(), free_port()
        self.url = f"https://{ADDRESS}:{self.port}"
        self.ca_file, self.token_file = directory / "ca.crt", directory / "admin.token"
        directory.mkdir(parents=True, exist_ok=True)
        self._write_secrets()
        client, peer = f"http://{ADDRESS}:{self._etcd_port}", f"http://{ADDRESS}:{peer_port}"
        self._etcd = Process(
            directory / "etcd.log",
            str(program("etcd", "etcd")),
            *("--data-dir", str(directory / "etcd"), "--unsafe-no-fsync", "--log-level", "warn"),
            *("--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer),
            *("--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"),
        )
        self._server = Process(
            directory / "kube-apiserver.log", str(program("kubernetes", "kube-apiserver")), *self._flags(client)
        )

    def _flags(self, etcd: str) -> list[str]:
        flags = {
            "etcd-servers": etcd,
            "bind-address": ADDRESS,
            "advertise-address": "192.0.2.1",
            "endpoint-reconciler-type": "none",
            "secure-port": self.port,
            "tls-cert-file": self.directory / "server.crt",
            "tls-private-key-file": self.directory / "server.key",
            "cert-dir": self.directory / "run",
            "service-cluster-ip-range": "10.96.0.0/16",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": self.directory / "accounts.pub",
            "service-account-signing-key-file": self.directory / "accounts.key",
            "token-auth-file": self.directory / "tokens.csv",
            "authorization-mode": "RBAC",
            "disable-admission-plugins": "ServiceAccount",
            "watch-cache": "true",
            "v": "0",
        }
        return [f"--{name}={value}" for name, value in flags.items()]

    def _write_secrets(self) -> None:
        token = secrets.token_hex(16)
        self.token_file.write_text(token)
        (self.directory / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n')
        accounts = ec.generate_private_key(ec.SECP256R1())
        (self.directory / "accounts.key").write_bytes(_pem(accounts))
        public = accounts.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self.directory / "accounts.pub").write_bytes(public)
        authority = ec.generate_private_key(ec.SECP256R1())
        root = _certificate("root", authority.public_key(), "root", authority, ca=True)
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _certificate("kube-apiserver", key.public_key(), "root", authority, ca=False)
        self.ca_file.write_bytes(root)
        (self.directory / "server.crt").write_bytes(leaf)
        (self.directory / "server.key").write_bytes(_pem(key))

    def start(self) -> None:
        """Start both and wait until the API server is ready."""
        self._etcd.start()
        self.start_api()

    def start_api(self) -> None:
        """Start the API server alone, over what etcd holds."""
        self._server.start()
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            self._etcd.check()
            self._server.check()
            assert time.monotonic() < deadline, (
                f"the API server is not ready after {_START_S} s; its log: {self._server.log}"
            )
            time.sleep(0.1)

    def stop_api(self, *, kill: bool = False) -> None:
        """Stop the API server alone: every watch breaks."""
        self._server.stop(kill=kill)

    def stop(self) -> None:
        """End both."""
        self._server.stop()
        self._etcd.stop()

    def _is_ready(self) -> bool:
        """Ready, and the default roles and namespaces are there."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        token = self.token_file.read_text()
        for path in ("/readyz", "/api/v1/namespaces/default"):
            asked = urllib.request.Request(f"{self.url}{path}", headers={"Authorization": f"Bearer {token}"})
            try:
                urllib.request.urlopen(asked, context=context, timeout=5).close()
            except OSError:
                return False
        return True

    @contextlib.asynccontextmanager
    async def client(self, token_file: Path | None = None):  # type: ignore[no-untyped-def]
        """A client with an administrator's token, or another one's."""
        api = KubernetesApi(self.url, str(self.ca_file), str(token_file or self.token_file))
        try:
            yield api
        finally:
            await api.close()

    async def account_token(self, namespace: str, account: str, audience: str = "") -> str:
        """A token of a service account, which is made if there is none; `audience` empty: the API server's own."""
        async with self.client() as api:
            accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
            await ensure(api, "/api/v1/namespaces", {"metadata": {"name": namespace}})
            await ensure(api, accounts, {"metadata": {"name": account}})
            spec: dict[str, Any] = {"expirationSeconds": 3600} | ({"audiences": [audience]} if audience else {})
            answer = await api.request("POST", f"{accounts}/{account}/token", {"spec": spec})
            return str(answer["status"]["token"])

    async def apply_crds(self, directory: Path = CRDS) -> None:
        """Install the custom resources of the chart and wait until they are served."""
        crds = [crd for path in _yaml_files(directory) for crd in yaml.safe_load_all(path.read_text())]
        async with self.client() as api:
            for crd in crds:
                await ensure(api, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
                await self._served(api, crd)

    async def _served(self, api: KubernetesApi, crd: dict[str, Any]) -> None:
        spec = crd["spec"]
        path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        async with asyncio.timeout(_START_S):
            while True:
                with contextlib.suppress(NotFound, Unreachable):  # not served yet; its storage begins
                    await api.request("GET", path)
                    return
                await asyncio.sleep(0.1)

    async def wipe(self, collections: Iterable[str] = _WIPED) -> None:
        """Delete everything in these collections, whatever finalizers say."""
        async with self.client() as api:
            for path in collections:
                with contextlib.suppress(NotFound):  # a custom resource that was not installed
                    for found in (await api.list_all(path))[0]:
                        await _delete(api, path, found)


def _yaml_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.yaml"))


async def ensure(api: KubernetesApi, collection: str, body: dict[str, Any]) -> dict[str, Any]:
    """Create an object unless there is one of its name; returns it as it is then."""
    path = f"{collection}/{body['metadata']['name']}"
    with contextlib.suppress(NotFound):
        return await api.request("GET", path)
    return await api.request("POST", collection, body)


async def _delete(api: KubernetesApi, collection: str, found: dict[str, Any]) -> None:
    base, _, plural = collection.rpartition("/")
    meta = found["metadata"]
    if (plural, meta["name"]) in (("services", "kubernetes"), ("endpointslices", "kubernetes")):
        return
    path = f"{base}/namespaces/{meta['namespace']}/{plural}/{meta['name']}"
    with contextlib.suppress(NotFound):
        if meta.get("finalizers"):
            free = {"metadata": {"finalizers": []}}
            await api.request("PATCH", path, free, content_type="application/merge-patch+json")
        await api.request("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0})


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _certificate(
    name: str, key: ec.EllipticCurvePublicKey, issuer: str, authority: ec.EllipticCurvePrivateKey, *, ca: bool
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(ADDRESS))]
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=ca,
                crl_sign=ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(authority, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)
