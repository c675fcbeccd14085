"""Envoy beside a service: its bootstrap, and the process that keeps it running."""
