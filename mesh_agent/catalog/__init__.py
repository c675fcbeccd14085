"""What everyone knows: nodes, services, checks, intentions, roots; who may read them, and how they reach the readers."""

from mesh_agent.catalog.view import View

__all__ = ["View"]
