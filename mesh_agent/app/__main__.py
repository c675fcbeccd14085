"""`python -m mesh_agent.app`: the process that `mesh agent` becomes. Reads settings, sets up logging, runs the agent until it is told to stop."""

import json
import logging
import os
import sys
from pathlib import Path

import uvloop

from mesh_agent.app.dev import dev_config
from mesh_agent.config import AgentConfig, load
from mesh_agent.errors import MeshError
from mesh_agent.telemetry import configure_logging

FLAGS_VARIABLE = "MESH_CONFIG_FILE_FLAGS"


def _settings() -> AgentConfig:
    given = json.loads(
        os.environ.pop(FLAGS_VARIABLE, '{"config_file": "/etc/mesh/mesh.toml", "dev": false, "flags": {}}')
    )
    if given["dev"]:
        return dev_config(given["flags"])
    path = given["config_file"]
    return load(None if path is None else Path(path), os.environ, given["flags"])


def main() -> int:
    """Run the agent; the exit code: 0 stopped as asked, 1 failed, 2 wrong settings."""
    try:
        config = _settings()
    except MeshError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    configure_logging(config.telemetry.log_level, config.telemetry.log_format)
    from mesh_agent.app.agent import run  # imported late: wrong settings are reported at once

    code = 0
    try:
        uvloop.run(run(config))
    except* MeshError as failed:
        for reason in failed.exceptions:
            logging.getLogger("mesh_agent").error("the agent stops: %s", reason)
        code = 1
    except* KeyboardInterrupt:
        pass
    return code


if __name__ == "__main__":
    sys.exit(main())
