"""The error tree. The docstring of each class says what state is left behind; front doors map classes to statuses."""


class MeshError(Exception):
    """Any failure that a caller may want to handle. The text says what happened and what to do."""


class ConfigError(MeshError):
    """A setting is missing or wrong; nothing was started. Names the file and the key."""


class InvalidRequest(MeshError):
    """The caller's input cannot be accepted; nothing changed (HTTP 400)."""


class NotFound(MeshError):
    """The named thing does not exist; nothing changed (HTTP 404)."""


class PermissionDenied(MeshError):
    """The peer may not do this; nothing changed (HTTP 403)."""


class RemoteProtocolError(MeshError):
    """A peer broke the protocol: count it, drop what it sent, go on."""


class LocalProtocolError(MeshError):
    """We were about to break the protocol: a bug of ours; nothing was sent."""


class StoreConflict(MeshError):
    """An expectation of a commit does not hold any more; nothing was written. Read again and retry."""


class StoreUnavailable(MeshError):
    """The store cannot be reached; whether the last commit was applied is unknown."""


class Unreachable(MeshError):
    """Nobody who could answer can be reached within the deadline (HTTP 500, DNS SERVFAIL)."""


class NoServers(Unreachable):
    """No server of the own datacenter can be reached; what this agent holds is still served."""


class NoPathToDatacenter(Unreachable):
    """The datacenter is unknown, or none of its servers can be reached."""


class JoinFailed(MeshError):
    """None of the addresses could be joined; membership is unchanged."""
