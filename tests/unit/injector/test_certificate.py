"""What the injector asks for, and what it believes of the answer."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh_agent.ca.issue import new_key
from mesh_agent.errors import RemoteProtocolError
from mesh_agent.injector.certificate import check, request
from mesh_agent.injector.readiness import Readiness

NAMES = ("mesh-injector.mesh-system.svc", "mesh-injector.mesh-system.svc.cluster.local")


def issued(key_pem: str, names: tuple[str, ...] | None) -> str:
    """A certificate for the key with these names; None: without the extension."""
    key = serialization.load_pem_private_key(key_pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if names is not None:
        san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(san, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_the_request_has_the_names_and_is_signed_by_its_key() -> None:
    csr = x509.load_pem_x509_csr(request(NAMES, new_key()).encode())
    assert csr.is_signature_valid
    san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert tuple(san.get_values_for_type(x509.DNSName)) == NAMES


def test_a_certificate_as_asked_for_is_believed() -> None:
    key = new_key()
    check(issued(key, NAMES), NAMES, key)


@pytest.mark.parametrize(
    ("names", "own_key", "reason"),
    [(NAMES[:1], True, "without the names"), (None, True, "without names"), (NAMES, False, "another key")],
)
def test_another_certificate_is_not(names: tuple[str, ...] | None, own_key: bool, reason: str) -> None:
    key = new_key()
    with pytest.raises(RemoteProtocolError, match=reason):
        check(issued(key if own_key else new_key(), names), NAMES, key)


def test_it_is_ready_with_a_valid_certificate_and_a_published_bundle() -> None:
    readiness = Readiness()
    assert "certificate" in readiness.missing(100.0)
    readiness.certificate_until = 200.0
    assert "bundle" in readiness.missing(100.0)
    readiness.bundle_published = True
    assert readiness.missing(100.0) == ""
    assert "certificate" in readiness.missing(200.0)
