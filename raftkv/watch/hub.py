"""The hub: every committed change goes to the watchers that want it, once.

A watcher is *current* or *behind*. Current ones stand in the index and are told each change as it is applied. A watcher
that starts in the past, or whose stream is full, is behind: it is told its part of slices of history until it has come
as far as the store, and is current again. Both happen between two changes of the store, so there is no gap and no
repeat.

Watchers that are behind are served in turn: one decides where the next slice begins, and those whose place lies in the
same slice ride along. So a long way back holds up nobody who is nearly there.
"""

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from raftkv.mvcc import Store
from raftkv.mvcc.history import read_slice
from raftkv.mvcc.interval import Interval
from raftkv.mvcc.store import Change
from raftkv.watch.event import Body, Event, bodies, events_of
from raftkv.watch.index import Group, Index
from raftkv.watch.stream import Watcher, WatchStream

SLICE_BYTES = 32 << 10
SLICE_REVISIONS = 1000
SLICE_WATCHERS = 500
"""Bounds of one slice, so that it takes a few milliseconds at most."""
FAN_OUT = 5000
"""How many watchers are told of changes at once; the others are served in slices, while the member goes on."""


class Counts(NamedTuple):
    """How much there is of what; `events` were told since the start, over all watchers."""

    streams: int
    watchers: int
    behind: int
    events: int


class Hub:
    """The watchers of one member.

    Invariants:
    1. A current watcher's stream has been given everything up to `revision` that the watcher wants.
    2. A watcher that is behind has been given everything below its `next_revision`.
    3. `_resumable` holds the streams that have watchers behind and room for what these read.
    """

    def __init__(
        self,
        store: Store,
        header: Callable[[int], bytes],
        *,
        rng: random.Random,
        fragment_bytes: int = 2 << 20,
        max_bytes: int = 1 << 62,
        on_behind: Callable[[], None] = lambda: None,
    ) -> None:
        """`header` encodes a response header of a revision; `on_behind` is called when `catch_up` has work.

        `rng` balances the index; clients must not know its seed. `max_bytes` bounds what watchers hold, and as much
        again what the queues of streams do.
        """
        self._store = store
        self._header = header
        self._on_behind = on_behind
        self.fragment_bytes = fragment_bytes
        self.revision = store.revision
        self.events_told = 0
        self.refused = 0
        """Watchers that were not created because there are as many as may be."""
        self.watcher_bytes = 0
        self.queued_bytes = 0
        """In the queues of all streams; what is large and waits in many of them counts once."""
        self._places: dict[int, int] = {}
        """In how many queues a large piece waits, by its identity: as long as it does, no other has the same."""
        self._max_bytes = max_bytes
        self._fresh: list[Event] = []
        self._left = FAN_OUT
        self._index = Index(rng)
        self._streams: dict[WatchStream, None] = {}
        self._resumable: dict[WatchStream, None] = {}
        self._progress_due: dict[WatchStream, None] = {}
        store.on_commit = self.committed

    def open(self, ready: Callable[[], None]) -> WatchStream:
        """Begin a stream; `ready` is called when it has something to take."""
        stream = WatchStream(self, ready)
        self._streams[stream] = None
        return stream

    @property
    def crowded(self) -> bool:
        """Whether no watcher more may be."""
        return self.watcher_bytes >= self._max_bytes

    @property
    def clogged(self) -> bool:
        """Whether no stream may be given more than it can send."""
        return self.queued_bytes >= self._max_bytes

    def hold(self, piece: bytes) -> None:
        """Count a large piece that joins a queue."""
        places = self._places.get(id(piece), 0)
        if not places:
            self.queued_bytes += len(piece)
        self._places[id(piece)] = places + 1

    def let_go(self, piece: bytes) -> None:
        """Count a large piece no more that leaves a queue."""
        places = self._places.pop(id(piece)) - 1
        if places:
            self._places[id(piece)] = places
        else:
            self.queued_bytes -= len(piece)

    def count(self) -> Counts:
        """Count what is there now."""
        streams = self._streams
        watchers = sum(len(stream.watchers) for stream in streams)
        behind = sum(len(stream.behind) for stream in streams)
        return Counts(len(streams), watchers, behind, self.events_told)

    def header(self, revision: int | None = None) -> bytes:
        """The header of a response of this moment, or of a revision."""
        return self._header(self._store.revision if revision is None else revision)

    # Current watchers

    def committed(self, revision: int, changes: Sequence[Change]) -> None:
        """Take the changes of a revision; `distribute` must follow before anybody else sees the store."""
        if self._index:
            self._fresh += events_of(revision, changes)

    def distribute(self) -> None:
        """Tell current watchers of everything that was committed since the last time."""
        self.revision = self._store.revision
        if self._fresh:
            fresh, self._fresh = self._fresh, []
            self._left = FAN_OUT
            for group, events in self._by_group(fresh).items():
                for form, watchers in tuple(group.forms.items()):
                    found = bodies(events, form, 0, self._header)
                    for watcher in tuple(watchers) if found else ():
                        self._tell(watcher, events, found)
        self._answer_progress()

    def _by_group(self, events: Sequence[Event]) -> dict[Group, list[Event]]:
        found: dict[Group, list[Event]] = {}
        for event in events:
            for group in self._index.match(event.key):
                if group in found:
                    found[group].append(event)
                else:
                    found[group] = [event]
        return found

    def _tell(self, watcher: Watcher, events: Sequence[Event], found: Sequence[Body]) -> None:
        if found[0].first < watcher.next_revision:
            # It starts in the future, and that may begin amid these.
            found = bodies(events, watcher.form, watcher.next_revision, self._header)
        stream = watcher.stream
        self._left -= 1
        for body in found:
            if stream.full or self._left < 0:
                self._index.remove(watcher)
                self._fall_behind(watcher, body.first)
                return
            stream.push(watcher, body)

    def _fall_behind(self, watcher: Watcher, revision: int) -> None:
        watcher.next_revision = revision
        watcher.stream.behind[watcher] = None
        self.resume(watcher.stream)

    def is_current(self, watcher: Watcher) -> bool:
        """Whether the watcher's stream has been given all there is, and it has begun."""
        return watcher.next_revision <= self.revision and watcher not in watcher.stream.behind

    # Coming and going

    def join(self, watcher: Watcher, start_revision: int) -> None:
        """Let a new watcher hear of its keys from a revision on; 0: from now on."""
        if 0 < start_revision <= self.revision:
            self._fall_behind(watcher, start_revision)
        else:
            watcher.next_revision = start_revision or self.revision
            self._index.add(watcher)

    def leave(self, watcher: Watcher) -> None:
        """Forget a watcher."""
        behind = watcher.stream.behind
        if watcher not in behind:
            self._index.remove(watcher)
            return
        del behind[watcher]
        if not behind:
            self._resumable.pop(watcher.stream, None)

    def closed(self, stream: WatchStream) -> None:
        """Forget a stream."""
        self._streams.pop(stream, None)
        self._resumable.pop(stream, None)
        self._progress_due.pop(stream, None)

    def become(self, store: Store) -> None:
        """Go on with another store, one that a snapshot of the same cluster brought.

        What lies between the two is read from the new one's history. Watchers whose place its compaction has overtaken
        are told so, as by any compaction.
        """
        self._store.on_commit = None
        self._store = store
        store.on_commit = self.committed
        self._fresh.clear()
        for watcher in self._index.watchers():
            self._index.remove(watcher)
            self._fall_behind(watcher, max(watcher.next_revision, self.revision + 1))
        self.revision = store.revision

    # Progress

    def progress_due(self, stream: WatchStream) -> None:
        """Remember a stream that waits for an answer about progress."""
        self._progress_due[stream] = None

    def _answer_progress(self) -> None:
        if self._progress_due:
            waiting, self._progress_due = self._progress_due, {}
            for stream in waiting:
                stream.progress_if_due()

    # Watchers that are behind

    def resume(self, stream: WatchStream) -> None:
        """Let a stream's watchers that are behind go on, if there is room for what they read."""
        if stream.has_room and stream not in self._resumable:
            self._resumable[stream] = None
            self._on_behind()

    def catch_up(self) -> bool:
        """Serve one slice of history; whether there is more to do now."""
        leader = next(iter(self._resumable), None)
        if leader is None:
            return False
        start = next(iter(leader.behind)).next_revision
        if start < self._store.compacted_revision:
            self._end_compacted(leader)
        else:
            past = _Past(self._store, start, self._header)
            for watcher in self._riders(past):
                self._serve(watcher, past)
        self._rotate(leader)
        self._answer_progress()
        return bool(self._resumable)

    def _end_compacted(self, stream: WatchStream) -> None:
        compacted = self._store.compacted_revision
        for watcher in [watcher for watcher in stream.behind if watcher.next_revision < compacted]:
            stream.compacted(watcher, compacted)

    def _riders(self, past: "_Past") -> list[Watcher]:
        """Those whose place lies in the slice, and those who need none; the one it was read for comes first."""
        places = islice(self._all_behind(), 8 * SLICE_WATCHERS)
        riders = (watcher for watcher in places if past.first <= watcher.next_revision)
        fitting = (w for w in riders if w.next_revision <= past.last or w.next_revision > self.revision)
        return list(islice(fitting, SLICE_WATCHERS))

    def _all_behind(self) -> Iterator[Watcher]:
        for stream in self._resumable:
            yield from stream.behind

    def _serve(self, watcher: Watcher, past: "_Past") -> None:
        stream = watcher.stream
        del stream.behind[watcher]
        for body in past.bodies_for(watcher):
            if stream.full:
                watcher.next_revision = body.first
                stream.behind[watcher] = None
                return
            stream.push(watcher, body)
        if past.last < self.revision:
            watcher.next_revision = past.last + 1
            stream.behind[watcher] = None
        else:
            watcher.next_revision = max(watcher.next_revision, self.revision)
            self._index.add(watcher)

    def _rotate(self, leader: WatchStream) -> None:
        """Drop streams that are done or full, and put the one that led last."""
        for stream in [stream for stream in self._resumable if not stream.behind or not stream.has_room]:
            del self._resumable[stream]
        if leader in self._resumable:
            del self._resumable[leader]
            self._resumable[leader] = None


class _Past:
    """A slice of history, and what watchers want of it."""

    def __init__(self, store: Store, first: int, header: Callable[[int], bytes]) -> None:
        found = read_slice(store, first, max_bytes=SLICE_BYTES, max_revisions=SLICE_REVISIONS)
        self.first, self.last = found.first, found.last
        self._header = header
        self._revision = store.revision
        self._events = [
            Event(main, deleted, key, chunk, partial(store.version_before, key, main, sub))
            for main, sub, deleted, key, chunk in found.records
        ]
        self._by_key: list[tuple[bytes, int]] | None = None
        self._bodies: dict[tuple[Interval, int, int], list[Body]] = {}

    def bodies_for(self, watcher: Watcher) -> list[Body]:
        """What one watcher is to be told; those who want the same share it."""
        wanted = (watcher.span, watcher.form, watcher.next_revision)
        found = self._bodies.get(wanted)
        if found is None:
            found = self._bodies[wanted] = bodies(
                self._select(watcher.span), watcher.form, watcher.next_revision, self._header
            )
            if found and self.last >= self._revision:
                # As etcd does: who has caught up learns how far the store is.
                found[-1].header = self._header(self._revision)
        return found

    def _select(self, span: Interval) -> list[Event]:
        """The events of an interval, in order: found by key, not one by one."""
        if self._by_key is None:
            self._by_key = sorted((event.key, place) for place, event in enumerate(self._events))
        first, end = span
        low = bisect_left(self._by_key, (first, 0))
        high = len(self._by_key) if end is None else bisect_left(self._by_key, (end, 0))
        if high - low == len(self._events):
            return self._events
        return [self._events[place] for place in sorted(place for _, place in self._by_key[low:high])]
