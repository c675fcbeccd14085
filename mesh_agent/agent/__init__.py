"""What this node wants: its services and checks, and the catalog made to follow."""

from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition

__all__ = ["CheckDefinition", "ServiceDefinition"]
