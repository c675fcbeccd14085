"""Mutual TLS on both sides, all key material by SDS, so that a rotation changes no listener and no cluster. Pure."""

from envoy.config.core.v3 import config_source_pb2 as source
from envoy.config.core.v3.base_pb2 import DataSource, TransportSocket
from envoy.extensions.transport_sockets.tls.v3 import common_pb2 as common
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2 as secret
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2 as tls
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from mesh_agent.xds.naming import LEAF, ROOTS


def packed(message: Message) -> AnyMessage:
    """A message as Any, serialized deterministically."""
    found = AnyMessage()
    found.Pack(message, deterministic=True)
    return found


def ads() -> source.ConfigSource:
    """ "Ask on the stream on which you got this"."""
    return source.ConfigSource(ads=source.AggregatedConfigSource(), resource_api_version=source.ApiVersion.V3)


def leaf_secret(certificate_pem: str, key_pem: str) -> secret.Secret:
    """The certificate that the proxy presents, with its key."""
    return secret.Secret(
        name=LEAF,
        tls_certificate=common.TlsCertificate(
            certificate_chain=DataSource(inline_string=certificate_pem), private_key=DataSource(inline_string=key_pem)
        ),
    )


def roots_secret(roots: tuple[str, ...]) -> secret.Secret:
    """The trust bundle."""
    bundle = "".join(root if root.endswith("\n") else root + "\n" for root in roots)
    return secret.Secret(
        name=ROOTS, validation_context=common.CertificateValidationContext(trusted_ca=DataSource(inline_string=bundle))
    )


def _context(accepted: StringMatcher, alpn: tuple[str, ...]) -> tls.CommonTlsContext:
    # Envoy's clients stop at TLS 1.2 unless they are told otherwise.
    uri = common.SubjectAltNameMatcher(san_type=common.SubjectAltNameMatcher.URI, matcher=accepted)
    return tls.CommonTlsContext(
        tls_params=common.TlsParameters(
            tls_minimum_protocol_version=common.TlsParameters.TLSv1_2,
            tls_maximum_protocol_version=common.TlsParameters.TLSv1_3,
        ),
        tls_certificate_sds_secret_configs=[secret.SdsSecretConfig(name=LEAF, sds_config=ads())],
        combined_validation_context=tls.CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=common.CertificateValidationContext(match_typed_subject_alt_names=[uri]),
            validation_context_sds_secret_config=secret.SdsSecretConfig(name=ROOTS, sds_config=ads()),
        ),
        alpn_protocols=alpn,
    )


def downstream(trust_domain: str, alpn: tuple[str, ...] = ()) -> TransportSocket:
    """Accept only clients with a certificate of the trust domain.

    No session is resumed: a resumed one would be judged by the certificate, and the bundle, of the day it was made.
    """
    context = tls.DownstreamTlsContext(
        common_tls_context=_context(StringMatcher(prefix=f"spiffe://{trust_domain}/"), alpn),
        require_client_certificate=BoolValue(value=True),
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )
    return TransportSocket(name="tls", typed_config=packed(context))


def upstream(server_name: str, identity: str, alpn: tuple[str, ...] = ()) -> TransportSocket:
    """Connect only to a server that presents exactly this SPIFFE ID."""
    context = tls.UpstreamTlsContext(
        common_tls_context=_context(StringMatcher(exact=identity), alpn),
        sni=server_name,
        max_session_keys=UInt32Value(value=0),
    )
    return TransportSocket(name="tls", typed_config=packed(context))
