"""Watchers against the whole history: whatever happens between a write and a reader, each stream is what it asked for.

Queues and slices are tiny here, so that watchers fall behind, read history and come back all the time.
"""

import gc
import shutil
import tempfile
from collections import deque
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raftkv.pb import rpc_pb2 as pb
from raftkv.watch import event as watch_event
from raftkv.watch import hub as watch_hub
from raftkv.watch import stream as watch_stream
from tests.unit.watch.world import World

KEYS = [b"a", b"a1", b"a2", b"b", b"b\xff", b"c/x", b"c/y", b"\xff\xff"]
SPANS = [
    *((key, b"") for key in KEYS),
    *((b"a", b"b"), (b"c/", b"c0"), (b"\0", b"\0"), (b"a1", b"\0"), (b"a1", b"b\xff"), (b"b", b"c/y"), (b"", b"b")),
    *((b"b", b"a"), (b"\xff", b"\0"), (b"a", b"a\0\0")),
]
values = st.binary(max_size=12)
keys = st.sampled_from(KEYS)


def held(stream: watch_stream.WatchStream) -> list[bytes]:
    """What waits in memory for a client, as the garbage collector finds it: often, what is held more than once."""
    queues = [thing for thing in gc.get_referents(stream) if isinstance(thing, deque)]
    return [piece for piece in gc.get_referents(*queues) if isinstance(piece, bytes)]


class Watching(RuleBasedStateMachine):
    """Writes, compactions and flushes; clients that create, cancel, stop reading and go away."""

    @initialize(max_bytes=st.sampled_from([1 << 62, 4 * watch_stream.WATCHER_BYTES, 1]))
    def begin(self, max_bytes: int) -> None:
        self.directory = tempfile.mkdtemp()
        self.world = World(Path(self.directory), fragment_bytes=160, max_bytes=max_bytes)
        self.world.client()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            for client in self.world.clients:
                client.stream.request_progress()
            self.world.settle()
            for client in self.world.clients:
                self._check_answered(client.watchers, client.progress)
            self.world.close()
            shutil.rmtree(self.directory)

    def _check_answered(self, watchers: dict, progress: list[int]) -> None:  # type: ignore[type-arg]
        """With all events read, a request for progress has its answer, unless somebody waits for the future."""
        alive = [asked for asked in watchers.values() if not asked.canceled]
        revision = self.world.store.revision
        if alive and all(asked.request.start_revision <= revision for asked in alive):
            assert progress
            assert progress[-1] == revision

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        self.world.put(key, value)

    @rule(values=st.dictionaries(keys, values, min_size=2))
    def put_all(self, values: dict[bytes, bytes]) -> None:
        self.world.put_all(values)

    @rule(span=st.sampled_from(SPANS[: len(KEYS) + 6]))
    def delete(self, span: tuple[bytes, bytes]) -> None:
        self.world.delete(*span)

    @rule(key=keys, count=st.integers(5, 30))
    def many(self, key: bytes, count: int) -> None:
        for number in range(count):
            self.world.put(key, b"%d" % number)

    @rule(back=st.integers(0, 6), steps=st.integers(0, 4))
    def compact(self, back: int, steps: int) -> None:
        revision = self.world.store.revision - back
        if revision > max(1, self.world.store.compacted_revision):
            self.world.compact(revision, steps)

    @rule()
    def compaction_step(self) -> None:
        self.world.store.compaction_step(1)

    @rule()
    def begin_flush(self) -> None:
        self.world.begin_flush()

    @rule()
    def end_flush(self) -> None:
        self.world.end_flush()

    @rule()
    def connect(self) -> None:
        if len(self.world.clients) < 4:
            self.world.client()

    @rule(number=st.integers(0, 3))
    def disconnect(self, number: int) -> None:
        if number < len(self.world.clients):
            self.world.clients.pop(number).stream.close()

    @rule(
        number=st.integers(0, 3),
        span=st.sampled_from(SPANS),
        start=st.integers(-25, 4),
        flags=st.integers(0, 7),
        filters=st.lists(st.integers(0, 1), max_size=2),
        watch_id=st.sampled_from([0, 0, 0, 1, 5]),
    )
    def create(
        self, number: int, span: tuple[bytes, bytes], start: int, flags: int, filters: list[int], watch_id: int
    ) -> None:
        if number < len(self.world.clients):
            now = self.world.store.revision
            request = pb.WatchCreateRequest(key=span[0], range_end=span[1], filters=filters, watch_id=watch_id)  # type: ignore[arg-type]
            request.start_revision = 0 if start == 0 else max(1, now + start)
            request.prev_kv, request.fragment, request.progress_notify = flags & 1 > 0, flags & 2 > 0, flags & 4 > 0
            self.world.clients[number].create(request)

    @rule(number=st.integers(0, 3), watch_id=st.integers(0, 5))
    def cancel(self, number: int, watch_id: int) -> None:
        if number < len(self.world.clients):
            self.world.clients[number].stream.cancel(watch_id)

    @rule(number=st.integers(0, 3))
    def read(self, number: int) -> None:
        if number < len(self.world.clients):
            self.world.clients[number].take()

    @rule(number=st.integers(0, 3))
    def progress(self, number: int) -> None:
        if number < len(self.world.clients):
            self.world.clients[number].stream.request_progress()

    @rule(number=st.integers(0, 3))
    def periodic(self, number: int) -> None:
        if number < len(self.world.clients):
            self.world.clients[number].stream.periodic_progress()

    @rule()
    def catch_up(self) -> None:
        self.world.catch_up()

    @rule()
    def settle(self) -> None:
        self.world.settle()

    @invariant()
    def queues_are_bounded(self) -> None:
        for client in (getattr(self, "world", None) and self.world.clients) or []:
            assert client.stream.queued_bytes < 20_000

    @invariant()
    def what_is_held_is_known(self) -> None:
        if hasattr(self, "world"):
            streams = [client.stream for client in self.world.clients]
            watchers = [watcher for stream in streams for watcher in stream.watchers.values()]
            assert self.world.hub.watcher_bytes == sum(watcher.held_bytes for watcher in watchers)
            pieces = [piece for stream in streams for piece in held(stream)]
            small = sum(len(piece) for piece in pieces if len(piece) < watch_stream.SHARED_BYTES)
            shared = {id(piece): len(piece) for piece in pieces if len(piece) >= watch_stream.SHARED_BYTES}
            assert self.world.hub.queued_bytes == small + sum(shared.values())


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_stream, "QUEUE_BYTES", 300)
    monkeypatch.setattr(watch_stream, "RESUME_BYTES", 150)
    monkeypatch.setattr(watch_stream, "SEND_BYTES", 100)
    monkeypatch.setattr(watch_stream, "SHARED_BYTES", 40)
    monkeypatch.setattr(watch_event, "MERGE_BYTES", 150)
    monkeypatch.setattr(watch_hub, "SLICE_BYTES", 200)
    monkeypatch.setattr(watch_hub, "SLICE_REVISIONS", 6)
    monkeypatch.setattr(watch_hub, "SLICE_WATCHERS", 2)
    monkeypatch.setattr(watch_hub, "FAN_OUT", 3)


Watching.TestCase.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


class TestWatching(Watching.TestCase):
    """The machine, with the tiny bounds."""
