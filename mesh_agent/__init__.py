"""An open, Consul-compatible service mesh agent."""

from importlib.metadata import version

__version__ = version("mesh-agent")
