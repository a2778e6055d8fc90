"""Events as wire bytes: encoded once in each form somebody wants, shared by all who want it.

A form is how a watcher wants its events: with the previous value, without puts, without deletions. An encoded event is
field 11 of a WatchResponse, so that a response is a head and a join of events.
"""

from collections.abc import Callable, Iterable, Sequence

from raftkv.mvcc.encoding import FIELD_3, varint
from raftkv.mvcc.store import Change

PREV_KV = 1
NO_PUT = 2
NO_DELETE = 4
"""Bits of a form."""

_EVENTS = b"\x5a"
_DELETE = b"\x08\x01"

MERGE_BYTES = 256 << 10
"""Events of several revisions share a response up to about this size; those of one revision always do."""


class Event:
    """One change of one key at one revision."""

    __slots__ = ("_chunk", "_full", "_plain", "_previous", "deleted", "key", "revision")

    def __init__(
        self,
        revision: int,
        deleted: bool,
        key: bytes,
        chunk: bytes,
        previous: bytes | Callable[[], bytes | None] | None,
    ) -> None:
        """`chunk` is the new version, `previous` the old one or a way to find it when somebody wants it."""
        self.revision = revision
        self.deleted = deleted
        self.key = key
        self._chunk = chunk
        self._previous = previous
        self._plain: bytes | None = None
        self._full: bytes | None = None

    def encoded(self, form: int) -> bytes:
        """The event as a field of a response; empty when the form leaves it out."""
        if form & (NO_DELETE if self.deleted else NO_PUT):
            return b""
        if form & PREV_KV:
            if self._full is None:
                self._full = self._encode(self._find_previous())
            return self._full
        if self._plain is None:
            self._plain = self._encode(None)
        return self._plain

    def _find_previous(self) -> bytes | None:
        return self._previous() if callable(self._previous) else self._previous

    def _encode(self, previous: bytes | None) -> bytes:
        body = _DELETE + self._chunk if self.deleted else self._chunk
        if previous is not None:
            body += FIELD_3 + previous[1:]
        return b"".join((_EVENTS, varint(len(body)), body))


def events_of(revision: int, changes: Iterable[Change]) -> list[Event]:
    """The events of one committed revision."""
    return [Event(revision, change.deleted, change.key, change.chunk, change.previous) for change in changes]


class Body:
    """The events of one response, whole revisions from `first` to `last`, shared by every watcher that gets it.

    `header` is the response header, encoded.
    """

    __slots__ = ("_data", "first", "header", "heads", "last", "parts", "size")

    def __init__(self, first: int) -> None:
        self.first = first
        self.last = first
        self.parts: list[bytes] = []
        self.size = 0
        self.header = b""
        self.heads: dict[int, bytes] = {}
        """Heads by watch id: watchers of many streams have the same few ids."""
        self._data: bytes | None = None

    def add(self, event: Event, encoded: bytes) -> None:
        self.last = event.revision
        self.parts.append(encoded)
        self.size += len(encoded)

    @property
    def data(self) -> bytes:
        """All events, joined."""
        if self._data is None:
            self._data = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        return self._data


def bodies(events: Sequence[Event], form: int, lowest: int, header: Callable[[int], bytes]) -> list[Body]:
    """Gather what a form wants of these events, in order, from revision `lowest` on."""
    found: list[Body] = []
    body: Body | None = None
    for event in events:
        encoded = event.encoded(form)
        if not encoded or event.revision < lowest:
            continue
        if body is None or (body.size >= MERGE_BYTES and event.revision != body.last):
            body = Body(event.revision)
            found.append(body)
        body.add(event, encoded)
    for body in found:
        body.header = header(body.last)
    return found
