"""The DNS front door: names of the catalog answered over UDP and TCP, everything else handed to the recursors."""

from mesh_agent.dns.answer import Follow, NeedTopic, Recurse, Responder

__all__ = ["Follow", "NeedTopic", "Recurse", "Responder"]
