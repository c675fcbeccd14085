"""An open, Consul-compatible service mesh agent."""

__version__ = "0.1.0"
