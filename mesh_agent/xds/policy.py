"""Intentions as Envoy's role-based access control: one ordered list, the first match decides, the default at its end. Pure."""

from collections.abc import Iterable

from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.rbac.v3 import rbac_pb2 as rbac
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC as HttpRbac
from envoy.extensions.matching.common_inputs.ssl.v3.ssl_inputs_pb2 import UriSanInput
from google.protobuf.message import Message
from xds.core.v3.extension_pb2 import TypedExtensionConfig as MatcherExtension
from xds.type.matcher.v3.matcher_pb2 import Matcher
from xds.type.matcher.v3.regex_pb2 import RegexMatcher
from xds.type.matcher.v3.string_pb2 import StringMatcher

from mesh_agent.catalog.intentions import ANY, matching
from mesh_agent.model import Action, Intention
from mesh_agent.xds.naming import INTENTIONS, identity_pattern
from mesh_agent.xds.tls import packed


def extension(name: str, message: Message) -> MatcherExtension:
    """An extension of the matching API."""
    return MatcherExtension(name=name, typed_config=packed(message))


def _verdict(name: str, allowed: bool) -> Matcher.OnMatch:
    action = rbac.RBAC.Action.ALLOW if allowed else rbac.RBAC.Action.DENY
    return Matcher.OnMatch(action=extension("verdict", rbac.Action(name=name, action=action)))


def field_matcher(source: MatcherExtension, pattern: str, then: Matcher.OnMatch) -> Matcher.MatcherList.FieldMatcher:
    value = StringMatcher(safe_regex=RegexMatcher(google_re2=RegexMatcher.GoogleRE2(), regex=pattern))
    single = Matcher.MatcherList.Predicate.SinglePredicate(input=source, value_match=value)
    return Matcher.MatcherList.FieldMatcher(
        predicate=Matcher.MatcherList.Predicate(single_predicate=single), on_match=then
    )


def matcher(intentions: Iterable[Intention], service: str, trust_domain: str, *, default_allow: bool) -> Matcher:
    """The matcher that decides by the peer's SPIFFE ID; what is not the identity of a service is refused whatever the default says.

    What follows an any-source intention cannot be reached and is left out.
    """
    peer = extension("peer", UriSanInput())
    found: list[Matcher.MatcherList.FieldMatcher] = []
    last = _verdict("default", default_allow)
    for each in matching(intentions, destination=service):
        verdict = _verdict(f"{each.source}->{each.destination}", each.action is Action.ALLOW)
        if each.source == ANY:
            last = verdict
            break
        found.append(field_matcher(peer, identity_pattern(each.source, trust_domain), verdict))
    found.append(field_matcher(peer, identity_pattern(ANY, trust_domain), last))
    return Matcher(
        matcher_list=Matcher.MatcherList(matchers=found), on_no_match=_verdict("not a service", allowed=False)
    )


def http_filter(decide: Matcher) -> TypedExtensionConfig:
    """The HTTP filter that enforces it on each request; discovered on its own, so that a change drains nothing."""
    return TypedExtensionConfig(name=INTENTIONS, typed_config=packed(HttpRbac(matcher=decide)))
