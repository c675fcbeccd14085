"""The webhook's certificate: the request for it, and what of the answer is believed. Pure."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from mesh_agent.ca.issue import key_matches, load_certificate
from mesh_agent.errors import RemoteProtocolError


def request(dns_names: tuple[str, ...], key_pem: str) -> str:
    """A signing request (PEM) for the names under which the API server calls the webhook."""
    key = serialization.load_pem_private_key(key_pem.encode(), None)
    san = x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(san, critical=True)
    csr = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]  # new_key() makes EC keys alone
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def check(certificate_pem: str, dns_names: tuple[str, ...], key_pem: str) -> None:
    """RemoteProtocolError unless the certificate is for the key and has all the names."""
    if not key_matches(certificate_pem, key_pem):
        raise RemoteProtocolError("the agent issued a certificate for another key than was asked for")
    try:
        san = load_certificate(certificate_pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise RemoteProtocolError("the agent issued a certificate without names") from None
    missing = set(dns_names) - set(san.get_values_for_type(x509.DNSName))
    if missing:
        raise RemoteProtocolError(f"the agent issued a certificate without the names {', '.join(sorted(missing))}")
