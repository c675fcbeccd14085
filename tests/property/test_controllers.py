"""Objects of a cluster come in every shape: whatever parts are missing, controllers plan and never fall over."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_agent.controllers import config_sync, to_mesh
from mesh_agent.controllers.config_sync import KINDS
from mesh_agent.controllers.settings import ToMesh
from tests.support.kubernetes_objects import endpoint, endpoint_slice, node, service

Json = dict[str, Any]


def thinned(value: Any, keep: Any) -> Any:
    """The value without, or with null for, some of its parts below metadata and spec themselves."""
    if isinstance(value, dict):
        return {key: thinned(each, keep) for key, each in value.items() if key in _NEEDED or keep()}
    if isinstance(value, list):
        return [thinned(each, keep) for each in value if keep()]
    return value if keep() or isinstance(value, str) else None


_NEEDED = ("metadata", "name", "spec", "namespace", "type", "address")


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]),
    st.text(max_size=3),
)
def test_services_that_lack_parts_are_planned(seed: int, kind: str, port: str) -> None:
    rng = random.Random(seed)

    def keep() -> bool:
        return rng.random() > 0.2

    sync = {"mesh.openmesh.io/service-sync": "true", "mesh.openmesh.io/service-port": port}
    status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "a"}]}}
    services = [thinned(service("web", annotations=sync, type=kind, status=status, ipFamilies=["IPv4"]), keep)]
    slices = [thinned(endpoint_slice("web", endpoint("10.0.0.1"), endpoint("10.0.0.2")), keep)]
    nodes = [thinned(node("n1", "10.9.0.1", "192.0.2.9"), keep)]
    found = to_mesh.registrations(services, slices, nodes, "c1", ToMesh(by_default=True))
    assert len({each.id for each in found}) == len(found)
    held = {each.id: each.body() for each in found}
    again = to_mesh.plan(found, held, "c1")
    assert (again.register, again.deregister, again.foreign) == ((), (), ())


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
names = st.sampled_from(["web", "*", ""]) | plain
sources = st.lists(
    st.fixed_dictionaries({}, optional={"name": names, "action": st.sampled_from(["allow", "deny", "x"]), "x": plain})
    | plain,
    max_size=3,
)
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "protocol": st.sampled_from(["http", "tcp"]) | plain,
        "config": st.dictionaries(st.sampled_from(["protocol", "x"]), plain) | plain,
        "destination": st.fixed_dictionaries({}, optional={"name": names, "other": plain}) | plain | st.lists(plain),
        "sources": sources | plain,
        "other": plain,
    },
)


@settings(deadline=None)
@given(st.sampled_from(KINDS), SPECS)
def test_specs_of_any_shape_are_decided(kind: Any, spec: Json) -> None:
    resource = {"metadata": {"name": "api", "namespace": "shop", "generation": 1}, "spec": spec}
    decision = config_sync.decide(kind, resource, {}, "c1")
    assert decision.outcome.synced == (decision.change is not None)
    config_sync.orphans(kind, [resource], {}, "c1")
    assert config_sync.with_status(resource, decision.outcome, 0.0, wrote=False) is not None
