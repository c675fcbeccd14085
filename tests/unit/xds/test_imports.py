"""An agent without sidecars must not pay for them."""

import subprocess
import sys

CODE = """
import sys
import mesh_agent.xds.runner, mesh_agent.xds.server, mesh_agent.sidecar.bootstrap
print(sorted({name.partition(".")[0] for name in sys.modules} & {"grpc", "google", "envoy", "xds"}))
"""


def test_grpc_and_the_protocol_buffers_are_not_imported_before_they_are_needed() -> None:
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
