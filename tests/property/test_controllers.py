"""Objects of a cluster come in every shape: whatever parts are missing, controllers plan and never fall over."""

from typing import Any

from hypothesis import given
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


@given(st.data())
def test_services_that_lack_parts_are_planned(data: st.DataObject) -> None:
    def keep() -> bool:
        return data.draw(st.integers(0, 4)) > 0

    kind = data.draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]))
    sync = {"mesh.openmesh.io/service-sync": "true", "mesh.openmesh.io/service-port": data.draw(st.text(max_size=3))}
    status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "a"}]}}
    services = [thinned(service("web", annotations=sync, type=kind, status=status, ipFamilies=["IPv4"]), keep)]
    slices = [thinned(endpoint_slice("web", endpoint("10.0.0.1"), endpoint("10.0.0.2")), keep)]
    nodes = [thinned(node("n1", "10.9.0.1", "192.0.2.9"), keep)]
    found = to_mesh.registrations(services, slices, nodes, "c1", ToMesh(by_default=True))
    assert len({each.id for each in found}) == len(found)
    held = {each.id: each.body() for each in found}
    again = to_mesh.plan(found, held, "c1")
    assert (again.register, again.deregister, again.foreign) == ((), (), ())


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda each: st.lists(each) | st.dictionaries(st.text(max_size=5), each),
    max_leaves=5,
)
fields = st.sampled_from(["protocol", "config", "destination", "sources", "name", "action", "other"])


@given(st.sampled_from(KINDS), st.dictionaries(fields, values | st.dictionaries(fields, values)))
def test_specs_of_any_shape_are_decided(kind: Any, spec: Json) -> None:
    resource = {"metadata": {"name": "api", "namespace": "shop", "generation": 1}, "spec": spec}
    decision = config_sync.decide(kind, resource, {}, "c1")
    assert decision.outcome.synced == (decision.change is not None)
    config_sync.orphans(kind, [resource], {}, "c1")
    assert config_sync.with_status(resource, decision.outcome, 0.0, wrote=False) is not None
