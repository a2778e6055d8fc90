"""A store with a hub, the whole history of what was written, and clients that check every answer as it comes."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from raftkv.mvcc import Flush, LmdbBackend, Store
from raftkv.mvcc.interval import contains, interval
from raftkv.pb import kv_pb2
from raftkv.pb import rpc_pb2 as pb
from raftkv.server.headers import Headers
from raftkv.watch import Hub

TERM = 7


class Past(NamedTuple):
    """One event as the specification has it."""

    revision: int
    event: kv_pb2.Event


class History:
    """Every event there ever was, from what the store says it changed and what the model had before."""

    def __init__(self) -> None:
        self.events: list[Past] = []
        self._live: dict[bytes, kv_pb2.KeyValue] = {}

    def put(self, revision: int, key: bytes, value: bytes) -> None:
        old = self._live.get(key)
        kv = kv_pb2.KeyValue(key=key, value=value, mod_revision=revision, create_revision=revision, version=1)
        if old is not None:
            kv.create_revision, kv.version = old.create_revision, old.version + 1
        self._live[key] = kv
        self._add(revision, kv_pb2.Event(type=kv_pb2.Event.PUT, kv=kv), old)

    def delete(self, revision: int, key: bytes, range_end: bytes = b"") -> int:
        """Delete an interval; how many keys there were."""
        gone = sorted(name for name in self._live if contains(interval(key, range_end), name))
        for name in gone:
            kv = kv_pb2.KeyValue(key=name, mod_revision=revision)
            self._add(revision, kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv), self._live.pop(name))
        return len(gone)

    def _add(self, revision: int, event: kv_pb2.Event, old: kv_pb2.KeyValue | None) -> None:
        if old is not None:
            event.prev_kv.CopyFrom(old)
        self.events.append(Past(revision, event))

    def wanted(self, request: pb.WatchCreateRequest, first: int) -> list[Past]:
        """What a watcher is to be told from a revision on."""
        span = interval(request.key or b"\0", request.range_end)
        unwanted = {
            kv_pb2.Event.PUT if kind == pb.WatchCreateRequest.NOPUT else kv_pb2.Event.DELETE for kind in request.filters
        }
        found = []
        for revision, event in self.events:
            if revision >= first and contains(span, event.kv.key) and event.type not in unwanted:
                shown = kv_pb2.Event.FromString(event.SerializeToString())
                if not request.prev_kv:
                    shown.ClearField("prev_kv")
                found.append(Past(revision, shown))
        return found


class Asked:
    """A watcher as its client sees it."""

    def __init__(self, request: pb.WatchCreateRequest, first: int) -> None:
        self.request = request
        self.first = first
        self.told: list[Past] = []
        self.created = False
        self.canceled = False
        self.compact_revision = 0
        self.unfinished: list[kv_pb2.Event] = []


class Client:
    """One stream. Each answer is checked against what the guarantees allow at that moment."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.stream = world.hub.open(lambda: None)
        self.watchers: dict[int, Asked] = {}
        self.progress: list[int] = []
        self.responses: list[pb.WatchResponse] = []
        self._creating: list[Asked] = []
        self._bytes = b""

    def create(self, request: pb.WatchCreateRequest) -> Asked:
        asked = Asked(request, request.start_revision or self.world.store.revision + 1)
        self._creating.append(asked)
        self.stream.create(request)
        return asked

    def take(self) -> bool:
        """Read what one turn gives; whether there was anything."""
        data = self.stream.take()
        for message in self._messages(data):
            response = pb.WatchResponse.FromString(message)
            self.responses.append(response)
            self._check(response)
        return bool(data)

    def drain(self) -> None:
        while self.take():
            pass

    def _messages(self, data: bytes) -> Iterator[bytes]:
        """A turn may end inside a message."""
        self._bytes += data
        while len(self._bytes) >= 5:
            end = 5 + int.from_bytes(self._bytes[1:5], "big")
            if end > len(self._bytes):
                return
            yield self._bytes[5:end]
            self._bytes = self._bytes[end:]

    def _check(self, response: pb.WatchResponse) -> None:
        if response.created:
            asked = self._creating.pop(0)
            asked.created = True
            if response.canceled:
                asked.canceled = True
                assert response.watch_id == -1
                assert response.cancel_reason
                return
            assert response.watch_id not in self.watchers or self.watchers[response.watch_id].canceled
            self.watchers[response.watch_id] = asked
            assert response.header.revision > 0
            return
        if not response.events and not response.canceled:
            self._check_progress(response)
            return
        asked = self.watchers[response.watch_id]
        assert not asked.canceled, "an answer after the last one"
        if response.canceled:
            assert not asked.unfinished
            asked.canceled, asked.compact_revision = True, response.compact_revision
            return
        assert response.header.raft_term == TERM
        self._check_events(asked, response)

    def _check_progress(self, response: pb.WatchResponse) -> None:
        """Bookmarkable: everything up to the revision was told before."""
        revision = response.header.revision
        assert revision > 0
        about = self.watchers.values() if response.watch_id == -1 else [self.watchers[response.watch_id]]
        for asked in about:
            if not asked.canceled:
                due = [past for past in self.world.history.wanted(asked.request, asked.first) if past[0] <= revision]
                assert asked.told == due, "progress overtook an event"
                assert not asked.unfinished
        if response.watch_id == -1:
            assert not self.progress or self.progress[-1] <= revision
            self.progress.append(revision)

    def _check_events(self, asked: Asked, response: pb.WatchResponse) -> None:
        """Ordered, unique, reliable, atomic: the next events, of whole revisions, and nothing else."""
        asked.unfinished += response.events
        assert asked.request.fragment or not response.fragment
        if response.fragment:
            return
        told = [Past(event.kv.mod_revision, event) for event in asked.unfinished]
        asked.unfinished = []
        assert response.header.revision >= told[-1].revision
        due = self.world.history.wanted(asked.request, asked.first)[len(asked.told) :]
        assert told == due[: len(told)]
        rest = due[len(told) :]
        assert not rest or rest[0].revision > told[-1].revision, "a revision in two responses"
        asked.told += told


class World:
    """A store, its hub, and clients."""

    def __init__(self, path: Path, *, fragment_bytes: int = 2 << 20, max_bytes: int = 1 << 62) -> None:
        self.path = str(path)
        self.history = History()
        self.clients: list[Client] = []
        self.backend = LmdbBackend(self.path, map_bytes=1 << 30)
        self.store = Store(self.backend)
        headers = Headers(1, 2)
        self.catching_up = False
        self.hub = Hub(
            self.store,
            lambda revision: headers.encode(revision, TERM),
            rng=random.Random(7),
            fragment_bytes=fragment_bytes,
            max_bytes=max_bytes,
            on_behind=self._behind,
        )
        self._flush: Flush | None = None

    def _behind(self) -> None:
        self.catching_up = True

    def client(self) -> Client:
        self.clients.append(Client(self))
        return self.clients[-1]

    def put(self, key: bytes, value: bytes = b"") -> None:
        """Put one key."""
        self.store.put(pb.PutRequest(key=key, value=value))
        self.history.put(self.store.revision, key, value)
        self.hub.distribute()

    def delete(self, key: bytes, range_end: bytes = b"") -> None:
        before = self.store.revision
        self.store.delete_range(pb.DeleteRangeRequest(key=key, range_end=range_end))
        assert (self.history.delete(before + 1, key, range_end) > 0) == (self.store.revision > before)
        self.hub.distribute()

    def put_all(self, values: dict[bytes, bytes]) -> None:
        """Put several keys at one revision."""
        ops = [pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)) for key, value in values.items()]
        self.store.txn(pb.TxnRequest(success=ops))
        for key, value in values.items():
            self.history.put(self.store.revision, key, value)
        self.hub.distribute()

    def compact(self, revision: int, steps: int | None = None) -> None:
        """Compact, and remove what it may in so many steps; all of it by default."""
        self.store.compact(revision)
        for _ in itertools.count() if steps is None else range(steps):
            if not self.store.compaction_step(1):
                break

    def begin_flush(self) -> None:
        if self._flush is None:
            self._flush = self.store.begin_flush()
            if self._flush is not None:
                self._flush.write()

    def end_flush(self) -> None:
        if self._flush is not None:
            self.backend.end_flush(self._flush)
            self._flush = None

    def flush(self) -> None:
        self.begin_flush()
        self.end_flush()

    def catch_up(self) -> bool:
        """One slice, if the hub asked for it; whether there is more."""
        if self.catching_up:
            self.catching_up = self.hub.catch_up()
        return self.catching_up

    def settle(self) -> None:
        """Let everybody read everything."""
        while True:
            worked = self.catching_up
            self.catch_up()
            if not any([worked, *[client.take() for client in self.clients]]):
                break
        for client in self.clients:
            for asked in client.watchers.values():
                if not asked.canceled:
                    assert asked.told == self.history.wanted(asked.request, asked.first), "something was lost"

    def close(self) -> None:
        self.end_flush()
        self.backend.close()
