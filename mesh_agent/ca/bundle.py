"""The trust bundle: which roots are believed, and whether a certificate chains to one of them. Pure."""

import datetime
from collections.abc import Iterable

from cryptography import x509
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

from mesh_agent.ca.issue import fingerprint, load_certificate
from mesh_agent.ca.spiffe_id import SpiffeId
from mesh_agent.errors import InvalidRequest, PermissionDenied
from mesh_agent.model import Root


def check_root(root_pem: str, trust_domain: str, now: float) -> None:
    """InvalidRequest unless this is a self-signed CA of the trust domain that is valid at `now` (seconds since the epoch)."""
    certificate = load_certificate(root_pem)
    try:
        certificate.verify_directly_issued_by(certificate)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception as error:  # cryptography raises several unrelated types here
        raise InvalidRequest(f"not a usable root: {error}") from error
    if not constraints.ca:
        raise InvalidRequest("not a usable root: it is not a certificate authority")
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uris != [str(SpiffeId(trust_domain))]:
        raise InvalidRequest(f"the root belongs to {uris}, not to trust domain {trust_domain!r}")
    if not certificate.not_valid_before_utc.timestamp() <= now < certificate.not_valid_after_utc.timestamp():
        raise InvalidRequest("the root is not valid now")


def root_object(root_pem: str, datacenter: str, *, active: bool = True) -> Root:
    """The catalog's object for a root certificate."""
    certificate = load_certificate(root_pem)
    return Root(
        datacenter=datacenter,
        fingerprint=fingerprint(root_pem),
        certificate_pem=root_pem,
        active=active,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def union(*bundles: Iterable[str]) -> tuple[str, ...]:
    """Every root once, in a stable order (by fingerprint), so that equal bundles are equal texts."""
    found = {fingerprint(pem): pem for bundle in bundles for pem in bundle}
    return tuple(found[each] for each in sorted(found))


def verify(leaf_pem: str, roots: Iterable[str], now: float) -> SpiffeId:
    """The SPIFFE ID of a leaf that chains to one of the roots and is valid at `now`; PermissionDenied otherwise."""
    certificates = [load_certificate(pem) for pem in roots]
    if not certificates:
        raise PermissionDenied("the trust bundle is empty")
    authorities = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    builder = (
        PolicyBuilder()
        .store(Store(certificates))
        .time(datetime.datetime.fromtimestamp(now, datetime.UTC))
        .extension_policies(ee_policy=ExtensionPolicy.permit_all(), ca_policy=authorities)
    )
    try:
        builder.build_client_verifier().verify(load_certificate(leaf_pem), [])
    except VerificationError as error:
        raise PermissionDenied(f"the certificate does not chain to the trust bundle: {error}") from error
    names = load_certificate(leaf_pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise PermissionDenied("the certificate does not have exactly one URI")
    return SpiffeId.parse(uris[0])
