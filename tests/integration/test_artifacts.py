"""`mesh artifacts fetch`, `list` and `verify` against a server on loopback that publishes releases and images the way upstream does."""

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mesh_agent.artifacts import layout
from mesh_agent.artifacts.image import read_archive
from mesh_agent.cli.main import main

VERSION = "1.37.2"
ARCH = layout.architecture(os.uname().machine)
KUBEADM = b"#!/bin/sh\necho registry.example/kube-apiserver:v1.37.2\necho registry.example/coredns/coredns:v1.14.6\n"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Upstream(ThreadingHTTPServer):
    """Serves `content` by path; remembers what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def program(self, name: str, content: bytes) -> None:
        path = f"/v{VERSION}/bin/linux/{ARCH}/{name}"
        self.content[path] = content
        self.content[f"{path}.sha256"] = _sha256(content).encode()

    def release(self, path: str, members: dict[str, bytes], sums: str) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        self.content[path] = buffer.getvalue()
        line = f"{_sha256(buffer.getvalue())}  {path.rpartition('/')[2]}\n"
        self.content[sums] = f"{'0' * 64}  another-file.tar.gz\n{line}".encode()

    def image(self, repository: str, tag: str, layer: bytes, *, compressed: bool) -> None:
        blob = gzip.compress(layer) if compressed else layer
        config = json.dumps({"config": {"Entrypoint": ["/x"]}, "rootfs": {"diff_ids": [f"sha256:{_sha256(layer)}"]}})
        manifest = {"config": self._blob(repository, config.encode()), "layers": [self._blob(repository, blob)]}
        manifest_text = json.dumps(manifest).encode()
        index = [
            {"digest": "sha256:" + "0" * 64, "platform": {"os": "windows", "architecture": ARCH}},
            {"digest": f"sha256:{_sha256(manifest_text)}", "platform": {"os": "linux", "architecture": ARCH}},
        ]
        self.content[f"/v2/{repository}/manifests/sha256:{_sha256(manifest_text)}"] = manifest_text
        self.content[f"/v2/{repository}/manifests/{tag}"] = json.dumps({"manifests": index}).encode()

    def _blob(self, repository: str, content: bytes) -> dict[str, object]:
        digest = f"sha256:{_sha256(content)}"
        self.content[f"/v2/{repository}/blobs/{digest}"] = content
        return {"digest": digest, "size": len(content)}


class _Handler(BaseHTTPRequestHandler):
    server: Upstream

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append((self.path, wanted))
        content = self.server.content.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        server.program("kubeadm", KUBEADM)
        server.program("kubelet", b"kubelet")
        server.program("kubectl", b"kubectl")
        server.release(
            f"/coredns/coredns/releases/download/v1.14.7/coredns_1.14.7_linux_{ARCH}.tgz",
            {"coredns": b"coredns"},
            f"/coredns/coredns/releases/download/v1.14.7/coredns_1.14.7_linux_{ARCH}.tgz.sha256",
        )
        server.image("kube-apiserver", "v1.37.2", b"a layer", compressed=True)
        server.image("coredns/coredns", "v1.14.6", b"another layer", compressed=False)
        yield server
        server.shutdown()
        thread.join()


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Mesh:
    """The `mesh` command in this process."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._patch = patch
        self._capture = capture
        patch.setenv("MESH_ARTIFACTS", str(directory))
        patch.setenv("NO_COLOR", "1")
        patch.setenv("no_proxy", "*")

    def upstream(self, url: str) -> None:
        for name in ("KUBERNETES", "GITHUB", "HELM", "REGISTRY"):
            self._patch.setenv(f"MESH_ARTIFACTS_{name}_URL", url)

    def __call__(self, *words: str) -> Done:
        self._patch.setattr(sys, "argv", ["mesh", "artifacts", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capture.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)


@pytest.fixture
def mesh(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Mesh:
    command = Mesh(tmp_path, monkeypatch, capsys)
    command.upstream(upstream.url)
    return command


def test_fetched_artifacts_are_complete_and_reused(tmp_path: Path, mesh: Mesh, upstream: Upstream) -> None:
    done = mesh("fetch", "kubernetes", "coredns")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / f"kubernetes-{VERSION}"
    assert (folder / "kubeadm").read_bytes() == KUBEADM
    assert os.access(folder / "kubelet", os.X_OK)
    assert (tmp_path / "coredns-1.14.7/coredns").read_bytes() == b"coredns"
    images = read_archive(folder / layout.IMAGES)
    tags = (folder / layout.TAGS).read_text().split()
    assert (
        set(images)
        == set(tags)
        == {"registry.example/kube-apiserver:v1.37.2", "registry.example/coredns/coredns:v1.14.6"}
    )
    assert images["registry.example/coredns/coredns:v1.14.6"]["config"] == {"Entrypoint": ["/x"]}

    assert mesh("verify").returncode == 0
    upstream.asked.clear()
    assert mesh("fetch", "kubernetes", "coredns").stdout.count("there already") == 3
    assert upstream.asked == []


def test_damage_is_found_by_verify(tmp_path: Path, mesh: Mesh) -> None:
    mesh("fetch", "coredns")
    with (tmp_path / "coredns-1.14.7/coredns").open("ab") as file:
        file.write(b"!")
    done = mesh("verify")
    assert done.returncode == 1
    assert "coredns-1.14.7/coredns: checksum differs" in done.stderr


def test_a_download_that_is_not_what_was_published_is_thrown_away(
    tmp_path: Path, mesh: Mesh, upstream: Upstream
) -> None:
    upstream.content[f"/v{VERSION}/bin/linux/{ARCH}/kubelet"] = b"something else"
    done = mesh("fetch", "kubernetes", "--no-images")
    assert done.returncode == 1
    assert "it was thrown away" in done.stderr
    assert not list(tmp_path.glob("kubernetes-*"))


def test_pinned_checksums_win_over_published_ones(tmp_path: Path, mesh: Mesh) -> None:
    sums = tmp_path / "sums"
    sums.write_text(f"{'0' * 64}  kubelet-{VERSION}-{ARCH}\n")
    done = mesh("fetch", "kubernetes", "--no-images", "--checksums", str(sums))
    assert done.returncode == 1
    assert f"not {'0' * 64}" in done.stderr


def test_a_download_goes_on_where_it_broke_off(tmp_path: Path, mesh: Mesh, upstream: Upstream) -> None:
    path = f"/coredns/coredns/releases/download/v1.14.7/coredns_1.14.7_linux_{ARCH}.tgz"
    partial = tmp_path / ".cache/downloads" / f"coredns-1.14.7-{ARCH}-coredns_1.14.7_linux_{ARCH}.tgz"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(upstream.content[path][:20])
    done = mesh("fetch", "coredns")
    assert done.returncode == 0, done.stderr
    assert (path, "bytes=20-") in upstream.asked
    assert (tmp_path / "coredns-1.14.7/coredns").read_bytes() == b"coredns"


def test_two_at_once_fetch_once(mesh: Mesh, upstream: Upstream) -> None:
    command = [sys.executable, "-m", "mesh_agent", "artifacts", "fetch", "coredns"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        said = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0]
    assert sum("there already" in text for text in said) == 1
    assert len([path for path, _ in upstream.asked if path.endswith(".tgz")]) == 1


def test_an_upstream_out_of_reach_points_to_the_alternative(mesh: Mesh, upstream: Upstream) -> None:
    upstream.shutdown()
    upstream.server_close()
    done = mesh("fetch", "kubernetes")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "mesh artifacts build" in done.stderr


def test_the_list_says_what_is_there(mesh: Mesh) -> None:
    mesh("fetch", "coredns")
    rows = json.loads(mesh("list", "-o", "json").stdout)
    states = {row["artifact"]: row["state"] for row in rows}
    assert states["coredns-1.14.7"] == "fetched"
    assert states["kubernetes-1.37.2"] == states["helm-3.22.0"] == "not there"


def test_an_empty_directory_is_not_verified(mesh: Mesh) -> None:
    done = mesh("verify")
    assert done.returncode == 2
    assert "mesh artifacts fetch" in done.stderr


def test_any_version_can_be_fetched(mesh: Mesh, upstream: Upstream) -> None:
    assert mesh("fetch", "kubernetes", "--kubernetes", "1.99.0").returncode == 1
    assert upstream.asked[0][0].startswith("/v1.99.0/")


@pytest.mark.timeout(400)  # a machine without Go downloads it first
def test_a_program_is_built_from_source_once(tmp_path: Path, mesh: Mesh) -> None:
    done = mesh("build", "pause")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "pause-3.10.2"
    assert mesh("build", "pause").stdout.strip().endswith("there already")
    assert layout.problems(folder) == []
    said = subprocess.run([folder / "pause", "-v"], capture_output=True, timeout=30, check=True)
    assert said.stdout == b"pause\n", "kubeadm's check before an upgrade runs this in a Job"
    with subprocess.Popen([folder / "pause"]) as pause:
        pause.send_signal(signal.SIGCHLD)
        pause.send_signal(signal.SIGTERM)
        assert pause.wait(30) in (0, -signal.SIGTERM)  # the latter when it had not set up its own end yet


def test_a_program_for_another_architecture_has_its_own_place(tmp_path: Path, mesh: Mesh) -> None:
    other = "arm64" if ARCH == "amd64" else "amd64"
    done = mesh("fetch", "coredns", "--arch", other)
    assert done.returncode == 1
    assert f"coredns_1.14.7_linux_{other}.tgz.sha256: 404" in done.stderr
    assert not (tmp_path / "coredns-1.14.7").exists()
