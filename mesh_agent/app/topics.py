"""A client agent's topics on disk, so that a restart while the servers are gone still answers."""

import logging
from pathlib import Path

import msgspec

from mesh_agent.app.paths import write_atomically
from mesh_agent.catalog.runner import Subscriber
from mesh_agent.catalog.stream import Update
from mesh_agent.clock import Clock

log = logging.getLogger(__name__)


def save(path: Path, subscriber: Subscriber) -> int:
    """Write every topic that has been answered; returns how many."""
    updates = [
        Update(replica.topic, replica.view.index, list(replica.view.records(replica.topic).values()), [], reset=True)
        for replica in subscriber.replicas.replicas()
        if replica.ready
    ]
    write_atomically(path, msgspec.msgpack.encode(updates))
    return len(updates)


def restore(path: Path, subscriber: Subscriber, clock: Clock) -> int:
    """Take over what an earlier run wrote; the servers' own answers replace it as soon as they come. Returns the number of topics."""
    try:
        updates = msgspec.msgpack.decode(path.read_bytes(), type=list[Update])
    except FileNotFoundError:
        return 0
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("the topics of the last run cannot be used: %s", error)
        return 0
    for update in updates:
        subscriber.replicas.add(update.topic, clock.now()).update(update)
    return len(updates)
