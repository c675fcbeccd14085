"""The `mesh` command: puts the command groups together and turns errors into one clear line and an exit code.

Exit codes: 0 done, 1 the agent (or the check) said no, 2 wrong usage or settings.
"""

import os
import sys

import typer

from mesh_agent.cli import (
    agent,
    artifacts,
    catalog,
    config_entries,
    connect,
    controllers,
    injector,
    lab,
    members,
    sidecar,
    tools,
)
from mesh_agent.cli.output import complain
from mesh_agent.errors import ConfigError, InvalidRequest, MeshError

app = typer.Typer(
    name="mesh",
    help="An open, Consul-compatible service mesh.",
    no_args_is_help=True,
    rich_markup_mode=None if "NO_COLOR" in os.environ else "rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (agent, members, catalog, config_entries, connect, controllers, injector, tools):
    module.register(app)
app.add_typer(sidecar.app, name="sidecar", help="Run Envoy beside a service.")
app.add_typer(artifacts.app, name="artifacts", help="Programs and images of Kubernetes and of the mesh.")
app.add_typer(lab.app, name="lab", help="A lab of real systemd hosts in several datacenters on this machine.")


def main() -> None:
    """Run a command and exit."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except typer.Abort:
        sys.exit(130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.exceptions.TyperException as error:
        show = getattr(error, "show", None)  # usage errors show themselves, with the usage of the command
        if show is None:
            complain(str(error))
        else:
            show()
        sys.exit(2)
    except (ConfigError, InvalidRequest) as error:
        complain(str(error))
        sys.exit(2)
    except MeshError as error:
        complain(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
