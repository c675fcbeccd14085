"""Keys, CSRs and certificates: X.509-SVIDs as the SPIFFE X509-SVID standard asks. Pure: time and serial numbers are arguments.

A leaf has exactly one URI SAN (its SPIFFE ID), CA false, key usage digitalSignature (critical), extended key usage client and server; a root has CA true,
keyCertSign and cRLSign, and its trust domain as URI SAN. Keys are ECDSA P-256. Validity starts a minute early, for clocks that differ.
"""

import datetime
from collections.abc import Sequence
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh_agent.ca.spiffe_id import SpiffeId
from mesh_agent.errors import InvalidRequest, PermissionDenied

BACKDATE_S = 60.0


class Authority(NamedTuple):
    """A certificate that signs, with its private key; both PEM."""

    certificate_pem: str
    key_pem: str


class Validity(NamedTuple):
    """Seconds since the epoch."""

    not_before: float
    not_after: float


def new_key() -> str:
    """A fresh P-256 private key as PKCS#8 PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def new_csr(identity: SpiffeId, key_pem: str) -> str:
    """A signing request (PEM) for `identity`."""
    key = _load_key(key_pem)
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(san, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def create_root(trust_domain: str, datacenter: str, *, serial: int, now: float, ttl_s: float) -> Authority:
    """A self-signed root for one datacenter of a trust domain; `now` in seconds since the epoch."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Mesh CA {datacenter} {serial:x}"[:64])])
    usage = _usage(sign_certificates=True)
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), serial, now, ttl_s)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(ski, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(SpiffeId(trust_domain)))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(certificate), _key_pem(key))


def requested_id(csr_pem: str) -> SpiffeId:
    """The SPIFFE ID that a CSR asks for; InvalidRequest unless it is signed by its own key and asks for exactly one."""
    csr = _load_csr(csr_pem)
    try:
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise InvalidRequest("the CSR names no SPIFFE ID; add it as URI in subjectAltName") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise InvalidRequest(f"the CSR names {len(uris)} URIs; an X.509-SVID has exactly one")
    return SpiffeId.parse(uris[0])


def sign_csr(csr_pem: str, authority: Authority, identity: SpiffeId, *, serial: int, now: float, ttl_s: float) -> str:
    """The leaf certificate (PEM) for a CSR. Only the key is taken from the CSR; `identity` is what the caller is allowed to be."""
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _leaf(csr_pem, authority, san, usages, serial=serial, now=now, ttl_s=ttl_s)


def sign_webhook_csr(
    csr_pem: str, authority: Authority, dns_names: Sequence[str], *, serial: int, now: float, ttl_s: float
) -> str:
    """A server certificate for DNS names. It holds no SPIFFE ID, so it is nobody's identity in the mesh."""
    san = x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names])
    return _leaf(csr_pem, authority, san, [ExtendedKeyUsageOID.SERVER_AUTH], serial=serial, now=now, ttl_s=ttl_s)


def fingerprint(certificate_pem: str) -> str:
    """SHA-256 of a certificate's DER, lower case hex."""
    return load_certificate(certificate_pem).fingerprint(hashes.SHA256()).hex()


def validity(certificate_pem: str) -> Validity:
    """From when to when a certificate is valid."""
    certificate = load_certificate(certificate_pem)
    return Validity(certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp())


def serial_of(certificate_pem: str) -> str:
    """The serial number as Consul writes it: hex bytes with colons."""
    number = load_certificate(certificate_pem).serial_number
    return number.to_bytes((number.bit_length() + 7) // 8 or 1, "big").hex(":")


def identity_of(certificate_pem: str) -> SpiffeId:
    """The SPIFFE ID of a certificate."""
    try:
        names = load_certificate(certificate_pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise InvalidRequest("the certificate names no SPIFFE ID") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise InvalidRequest(f"the certificate names {len(uris)} URIs; an X.509-SVID has exactly one")
    return SpiffeId.parse(uris[0])


def key_matches(certificate_pem: str, key_pem: str) -> bool:
    """Whether the private key belongs to the certificate."""
    return load_certificate(certificate_pem).public_key() == _load_key(key_pem).public_key()


def load_certificate(certificate_pem: str) -> x509.Certificate:
    """The first certificate of a PEM text; InvalidRequest if there is none."""
    try:
        return x509.load_pem_x509_certificate(certificate_pem.encode())
    except ValueError as error:
        raise InvalidRequest(f"not a PEM certificate: {error}") from error


def _leaf(
    csr_pem: str,
    authority: Authority,
    san: x509.SubjectAlternativeName,
    usages: list[x509.ObjectIdentifier],
    *,
    serial: int,
    now: float,
    ttl_s: float,
) -> str:
    public_key = _load_csr(csr_pem).public_key()
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
        raise InvalidRequest("the CSR's key must be ECDSA P-256")
    issuer = x509.load_pem_x509_certificate(authority.certificate_pem.encode())
    left_s = issuer.not_valid_after_utc.timestamp() - now
    if left_s <= 0:
        raise PermissionDenied(
            "the root certificate of this datacenter has expired; nothing can be issued until it has a new one"
        )
    issuer_ski = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        # Without a subject the SAN extension must be critical (RFC 5280, 4.2.1.6).
        _builder(x509.Name([]), issuer.subject, public_key, serial, now, min(ttl_s, left_s))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_ski), critical=False)
        .add_extension(san, critical=True)
        .sign(_load_key(authority.key_pem), hashes.SHA256())
    )
    return _pem(certificate)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, serial: int, now: float, ttl_s: float
) -> x509.CertificateBuilder:
    start = datetime.datetime.fromtimestamp(now - BACKDATE_S, datetime.UTC)
    end = datetime.datetime.fromtimestamp(now + ttl_s, datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(serial).not_valid_before(start).not_valid_after(end)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _load_csr(csr_pem: str) -> x509.CertificateSigningRequest:
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        if not csr.is_signature_valid:
            raise InvalidRequest("the CSR is not signed by the key that it holds")
    except (ValueError, InvalidSignature) as error:
        raise InvalidRequest(f"not a PEM certificate signing request: {error}") from error
    return csr


def _load_key(key_pem: str) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(key_pem.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidRequest("the private key is not an elliptic curve key")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
