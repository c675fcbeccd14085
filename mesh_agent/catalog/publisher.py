"""The publishing side of the subscription stream: each change of a topic is encoded once and handed to every session that follows it. Pure.

A session that does not drain its outbox is not allowed to grow: its backlog is dropped and replaced by one fresh `reset` of each topic it follows.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

from mesh_agent.catalog.stream import Failed, Update, encode
from mesh_agent.catalog.view import View
from mesh_agent.model import Record, Topic

Stop = Callable[[], None]
MAX_BACKLOG = 512
"""Frames that may wait in one session's outbox."""


class Source(Protocol):
    """Where topics come from: the full View of a server, or the replicas of another datacenter."""

    def state(self, topic: Topic) -> tuple[View | None, str | None]:
        """(View that answers now or None, error text or None); (None, None) means not known yet."""
        ...

    def follow(self, topic: Topic, on_change: Callable[[], None]) -> Stop:
        """Call `on_change()` after each change of the topic's records or state; subscribes upstream where needed."""
        ...


class Session:
    """One subscriber: frames that wait to be sent. `on_ready()` is called when the outbox becomes non-empty."""

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self.outbox: deque[bytes] = deque()
        self.behind = False
        self._on_ready = on_ready

    def push(self, frame: bytes) -> None:
        """Queue a frame, or note that this session must start over."""
        if self.behind:
            return
        if len(self.outbox) >= MAX_BACKLOG:
            self.outbox.clear()
            self.behind = True
        else:
            self.outbox.append(frame)
        self._on_ready()


class _Publication:
    """One topic with its sessions and what they were last told."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.sessions: set[Session] = set()
        self.told: dict[str, Record] | None = None
        self.index = 0
        self.error: str | None = None
        self.stop: Stop = lambda: None
        self.scheduled = False

    def snapshot(self) -> bytes | None:
        """The frame that brings a new session up to date, or None while nothing is known."""
        if self.error is not None:
            return encode(Failed(self.topic, self.error))
        if self.told is None:
            return None
        return encode(Update(self.topic, self.index, list(self.told.values()), [], reset=True))

    def delta(self, view: View) -> bytes | None:
        """Move on to what `view` holds now; the frame that says so, or None if nothing changed."""
        records = view.records(self.topic)
        index = view.topic_index(self.topic)
        fresh = self.told is None or self.error is not None
        before = {} if self.told is None else self.told
        puts = [record for key, record in records.items() if before.get(key) != record]
        deletes = [key for key in before if key not in records]
        self.told, self.index, self.error = records, index, None
        if fresh:
            return self.snapshot()
        return encode(Update(self.topic, index, puts, deletes)) if puts or deletes else None


class Publisher:
    """Serves topics of `source` to sessions; `schedule` runs a callable soon (once per burst of changes)."""

    def __init__(self, source: Source, schedule: Callable[[Callable[[], None]], None]) -> None:
        self._source = source
        self._schedule = schedule
        self._publications: dict[Topic, _Publication] = {}

    def subscribe(self, session: Session, topic: Topic) -> None:
        """Bring `session` up to date on `topic` and keep it so."""
        publication = self._publications.get(topic)
        if publication is None:
            publication = _Publication(topic)
            self._publications[topic] = publication
            publication.stop = self._follow(publication)
            self._refresh(publication)
        publication.sessions.add(session)
        frame = publication.snapshot()
        if frame is not None:
            session.push(frame)

    def unsubscribe(self, session: Session, topic: Topic) -> None:
        """Stop sending `topic` to `session`."""
        publication = self._publications.get(topic)
        if publication is None:
            return
        publication.sessions.discard(session)
        if not publication.sessions:
            publication.stop()
            del self._publications[topic]

    def resync(self, session: Session) -> None:
        """Start over with a session that fell behind: one snapshot of each of its topics."""
        session.behind = False
        for publication in self._publications.values():
            if session in publication.sessions:
                frame = publication.snapshot()
                if frame is not None:
                    session.push(frame)

    def recheck(self) -> None:
        """A datacenter became known: follow anew what could not be answered."""
        for publication in self._publications.values():
            if publication.error is not None:
                publication.stop()
                publication.stop = self._follow(publication)
                self._changed(publication)

    def _follow(self, publication: _Publication) -> Stop:
        return self._source.follow(publication.topic, lambda: self._changed(publication))

    def close(self, session: Session) -> None:
        """Forget a session."""
        for topic in [topic for topic, publication in self._publications.items() if session in publication.sessions]:
            self.unsubscribe(session, topic)

    def _changed(self, publication: _Publication) -> None:
        if not publication.scheduled:
            publication.scheduled = True
            self._schedule(lambda: self._flush(publication))

    def _flush(self, publication: _Publication) -> None:
        publication.scheduled = False
        if self._publications.get(publication.topic) is not publication:
            return
        frame = self._refresh(publication)
        if frame is not None:
            for session in tuple(publication.sessions):
                session.push(frame)

    def _refresh(self, publication: _Publication) -> bytes | None:
        view, error = self._source.state(publication.topic)
        if error is not None:
            if publication.error == error:
                return None
            publication.error = error
            return encode(Failed(publication.topic, error))
        return None if view is None else publication.delta(view)
