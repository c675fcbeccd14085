"""The pod session: what a pod shows to get its configuration, once it has proved who it is. Pure.

It is an HMAC of the pod's uid under a secret of this agent: nothing is stored for it, it survives a restart of the agent, and it is worth nothing on
another node or for another pod. It has no end of its own: it is good as long as the pod is on this node.
"""

import hmac
from hashlib import sha256

_PURPOSE = b"mesh pod session 1\0"
SECRET_BYTES = 32


def session_of(secret: bytes, uid: str) -> str:
    """The session of the pod with this uid, as hex."""
    return hmac.new(secret, _PURPOSE + uid.encode(), sha256).hexdigest()


def is_session_of(secret: bytes, uid: str, session: str) -> bool:
    """Whether `session` is that of the pod; takes the same time whatever it is."""
    return hmac.compare_digest(session_of(secret, uid).encode(), session.encode())
