"""Registrations: services with their checks and sidecars, maintenance, files against the API."""

import msgspec
import pytest

from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition
from mesh_agent.agent.local_state import NODE_MAINTENANCE, LocalState, Source
from mesh_agent.agent.records import Records
from mesh_agent.errors import InvalidRequest, MeshError, NotFound
from mesh_agent.model import Node, Status


def _ttl(check_id: str = "", **more: object) -> CheckDefinition:
    return CheckDefinition(id=check_id, ttl_s=10.0, **more)  # type: ignore[arg-type]


def _service(name: str, *checks: CheckDefinition, **more: object) -> ServiceDefinition:
    return ServiceDefinition(name=name, checks=checks, **more)  # type: ignore[arg-type]


def _with_sidecar(name: str, **more: object) -> ServiceDefinition:
    sidecar = ServiceDefinition(name=f"{name}-sidecar-proxy", kind="connect-proxy")
    return ServiceDefinition(name=name, port=80, tags=("a",), sidecar=sidecar, **more)  # type: ignore[arg-type]


def _state(*definitions: ServiceDefinition, source: Source = Source.API) -> LocalState:
    state = LocalState((21000, 21001))
    for each in definitions:
        state.register(each, source)
    return state


def test_checks_of_a_service_get_consuls_ids_and_names() -> None:
    state = _state(_service("web", _ttl(), id="web1"), _service("api", _ttl(), _ttl("own"), _ttl()))
    assert list(state.checks) == ["service:web1", "service:api:1", "own", "service:api:3"]
    check = state.checks["service:web1"].definition
    assert (check.name, check.service_id) == ("Service 'web' check", "web1")


def test_a_sidecar_comes_and_goes_with_its_service() -> None:
    state = _state(_with_sidecar("web"))
    sidecar = state.services["web-sidecar-proxy"].definition
    assert sidecar.proxy is not None
    assert (sidecar.kind, sidecar.port, sidecar.tags) == ("connect-proxy", 21000, ("a",))
    assert (sidecar.proxy.destination_service, sidecar.proxy.destination_id, sidecar.proxy.local_port) == (
        "web",
        "web",
        80,
    )
    listening, alias = (state.checks[f"service:web-sidecar-proxy:{n}"].definition for n in (1, 2))
    assert (listening.name, listening.tcp, listening.interval_s) == (
        "Connect Sidecar Listening",
        "127.0.0.1:21000",
        10.0,
    )
    assert (alias.name, alias.alias_service) == ("Connect Sidecar Aliasing web", "web")
    state.deregister("web")
    assert (state.services, state.checks) == ({}, {})


def test_registering_again_without_a_sidecar_takes_it_away() -> None:
    state = _state(_with_sidecar("web"), _service("web"))
    assert list(state.services) == ["web"]
    assert state.checks == {}


def test_a_sidecar_that_is_deregistered_alone_does_not_come_back_from_disk() -> None:
    state = _state(_with_sidecar("web"))
    state.deregister("web-sidecar-proxy")
    assert list(state.services) == ["web"]
    [kept] = state.kept().values()
    assert isinstance(kept, ServiceDefinition)
    assert kept.sidecar is None


def test_sidecars_keep_their_ports_and_the_range_ends() -> None:
    state = _state(_with_sidecar("web"), _with_sidecar("api"))
    state.deregister("web")
    state.register(_with_sidecar("api"), Source.API)
    assert state.services["api-sidecar-proxy"].definition.port == 21001
    state.register(_with_sidecar("db"), Source.API)
    assert state.services["db-sidecar-proxy"].definition.port == 21000
    before = state.copy()
    with pytest.raises(InvalidRequest, match="no port of 21000-21001 is left"):
        state.register(_with_sidecar("x"), Source.API)
    assert state.services == before.services


def test_a_port_is_kept_over_a_restart_even_when_another_sidecar_comes_first() -> None:
    state = LocalState((21000, 21009), ports={"web-sidecar-proxy": 21000})
    state.register(_with_sidecar("api"), Source.FILE)
    state.register(_with_sidecar("web"), Source.FILE)
    assert state.ports == {"web-sidecar-proxy": 21000, "api-sidecar-proxy": 21001}


def test_a_port_that_a_service_of_the_node_has_is_not_given_to_a_sidecar() -> None:
    state = _state(_service("other", port=21000), _with_sidecar("web"))
    assert state.services["web-sidecar-proxy"].definition.port == 21001


@pytest.mark.parametrize(
    ("definition", "text"),
    [
        (_service("x", _ttl("c"), _ttl("c")), "two checks of service 'x' have the id 'c'"),
        (_service("x", _ttl("service:web")), "belongs to service 'web' already"),
        (_service("x", _ttl("mem")), "is a check of the node already"),
        (_service("x", _ttl("serfHealth")), "reserved"),
        (_service("x", _ttl("_service_maintenance:web")), "reserved"),
        (_service("consul"), "what the servers themselves are"),
        (_service("x", id="api-sidecar-proxy"), "is the sidecar of 'api'"),
        (_with_sidecar("taken"), "taken by another service"),
    ],
)
def test_what_would_clash_is_refused(definition: ServiceDefinition, text: str) -> None:
    state = _state(_service("web", _ttl()), _with_sidecar("api"), _service("taken-sidecar-proxy"))
    state.register_check(_ttl("mem"), Source.API)
    with pytest.raises(InvalidRequest, match=text):
        state.copy().register(definition, Source.API)


def test_checks_that_a_new_definition_does_not_name_stay_unless_told_otherwise() -> None:
    for replace, left in ((False, {"a", "b", "alone"}), (True, {"b"})):
        state = _state(_service("web", _ttl("a"), _ttl("b")))
        state.register_check(_ttl("alone", service_id="web"), Source.API)
        state.register(_service("web", _ttl("b")), Source.API, replace_existing_checks=replace)
        assert set(state.checks) == left
        assert {name for kind, name in state.kept() if kind == "checks"} == left - {"b"}, "and outlive a restart"


def test_registering_again_keeps_results_of_the_same_kind_of_check() -> None:
    state = _state(_service("web", _ttl("a")))
    state.checks["a"].status, state.checks["a"].output = Status.PASSING, "fine"
    state.register(_service("web", CheckDefinition(id="a", ttl_s=99.0)), Source.API)
    assert (state.checks["a"].status, state.checks["a"].output) == (Status.PASSING, "fine")
    state.register(_service("web", CheckDefinition(id="a", tcp="x:1", interval_s=1.0)), Source.API)
    assert state.checks["a"].status is Status.CRITICAL


def test_a_check_of_a_service_that_is_taken_away_does_not_come_back_from_disk() -> None:
    state = _state(_service("web", _ttl(), _ttl()))
    state.deregister_check("service:web:1")
    again = LocalState()
    for each in state.kept().values():
        assert isinstance(each, ServiceDefinition)
        again.register(each, Source.API)
    assert list(again.checks) == ["service:web:2"]


def test_unknown_things_have_consuls_texts() -> None:
    state = LocalState()
    service = 'Unknown service ID "x". Ensure that the service ID is passed, not the service name.'
    check = 'Unknown check ID "x". Ensure that the check ID is passed, not the check name.'
    for call, kind, text in (
        (lambda: state.deregister("x"), NotFound, service),
        (lambda: state.service_maintenance("x", enable=True, reason=""), NotFound, service),
        (lambda: state.deregister_check("x"), NotFound, check),
        (lambda: state.check("x"), NotFound, check),
        (
            lambda: state.register_check(_ttl("a", service_id="x"), Source.API),
            InvalidRequest,
            'ServiceID "x" does not exist',
        ),
    ):
        with pytest.raises(kind) as raised:
            call()
        assert str(raised.value) == text


def test_maintenance_is_a_critical_check_that_says_why() -> None:
    state = _state(_service("web"))
    state.service_maintenance("web", enable=True, reason="disk swap")
    state.node_maintenance(enable=True, reason="")
    service, node = state.checks["_service_maintenance:web"], state.checks[NODE_MAINTENANCE]
    assert (service.status, service.definition.notes, service.definition.kind) == (
        Status.CRITICAL,
        "disk swap",
        "maintenance",
    )
    assert "no reason was provided" in node.definition.notes
    assert state.health("web")[0] is Status.CRITICAL
    assert len(state.kept()) == 3
    state.register(_service("web"), Source.API, replace_existing_checks=True)
    assert "_service_maintenance:web" in state.checks, "a deployment does not end maintenance"
    state.service_maintenance("web", enable=False, reason="")
    state.node_maintenance(enable=False, reason="")
    assert state.checks == {}


def test_a_load_replaces_what_the_last_one_brought_and_nothing_else() -> None:
    state = _state(_service("api", _ttl()))
    state.load([_service("web", _ttl("a"), _ttl("b")), _with_sidecar("old")], [_ttl("mem"), _ttl("cpu")])
    assert set(state.services) == {"api", "web", "old", "old-sidecar-proxy"}
    state.load([_service("web", _ttl("b"))], [_ttl("cpu")])
    assert set(state.services) == {"api", "web"}
    assert set(state.checks) == {"service:api", "b", "cpu"}
    assert set(state.kept()) == {("services", "api")}


def test_a_file_takes_over_what_the_api_registered() -> None:
    state = _state(_service("web", _ttl("a")))
    state.load([_service("web", _ttl("b"))], [])
    assert (set(state.checks), state.kept()) == ({"b"}, {})
    state.load([], [])
    assert state.services == {}


def test_a_copy_changes_by_itself_but_shares_results() -> None:
    state = _state(_service("web", _ttl("a")))
    copy = state.copy()
    copy.deregister("web")
    assert "web" in state.services
    again = state.copy()
    again.checks["a"].status = Status.PASSING
    assert state.checks["a"].status is Status.PASSING


def test_records_follow_what_they_are_made_from() -> None:
    node = Node(name="n 1", address="10.0.0.1")
    records, state = Records(node), _state(_service("web", _ttl("a")))
    first = records.of(state)
    assert list(first) == ["nodes/n%201", "checks/n%201/a", "services/n%201/web"]
    assert records.of(state) == first
    state.checks["a"].status, state.checks["a"].output = Status.PASSING, "fine"
    second = records.of(state)
    assert msgspec.json.decode(second["checks/n%201/a"])["status"] == "passing"
    assert "output" not in msgspec.json.decode(second["checks/n%201/a"]), "told at leisure"
    state.register(_service("web", _ttl("a"), tags=("t",)), Source.API)
    third = records.of(state)
    assert msgspec.json.decode(third["checks/n%201/a"])["service_tags"] == ["t"]
    state.deregister("web")
    assert list(records.of(state)) == ["nodes/n%201"]


def test_no_change_is_left_half_done() -> None:
    state = _state(_service("web", _ttl("a")))
    fresh = state.copy()
    with pytest.raises(MeshError):
        fresh.load([_with_sidecar("x"), _with_sidecar("y"), _with_sidecar("z")], [])
    assert set(state.services) == {"web"}
    assert state.ports == {}
