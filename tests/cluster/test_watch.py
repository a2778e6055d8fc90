"""Watches on three members: whoever is killed, every watcher hears every change once, in order."""

import itertools
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from raftkv.client import Client, ClientError, Watch
from raftkv.pb import kv_pb2, v3election_pb2
from raftkv.pb import rpc_pb2 as pb
from tests.support.processes import Cluster, Process, cluster
from tests.support.watching import SECONDS, Stream

WATCHERS = 24
PREFIXES = [b"p%d/" % number for number in range(10)]
END = b"~end"
Event = tuple[int, bytes]
"""Revision and the event, encoded."""


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, 3) as running:
        yield running


class Writer(threading.Thread):
    """Puts, deletes and overwrites over all prefixes, as fast as the cluster answers, until it is stopped."""

    def __init__(self, endpoints: str, seed: int) -> None:
        super().__init__()
        self._client = Client(endpoints, timeout=20.0)
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self.written = 0

    def run(self) -> None:
        while not self._stopping.is_set():
            prefix = self._random.choice(PREFIXES)
            try:
                if self._random.random() < 0.1:
                    self._client.delete(prefix, prefix=True)
                else:
                    self._client.put(prefix + b"%d" % self._random.randrange(20), b"%d" % self.written)
            except ClientError:
                # It happened or not; the watchers and the store must only agree.
                continue
            self.written += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join()
        self._client.close()


class Listener(threading.Thread):
    """A client's watcher of one prefix, with previous values, until the end is told."""

    def __init__(self, endpoints: str, number: int) -> None:
        super().__init__(daemon=True)
        self.prefix = PREFIXES[number % len(PREFIXES)]
        self._client = Client(endpoints, dial_timeout=20.0)
        self._watch: Watch = self._client.watch(self.prefix, prefix=True, prev_kv=True, progress_notify=number % 2 == 0)
        self._watch.ready()
        self.first = self._watch.next_revision
        self.told: list[Event] = []
        self.error: BaseException | None = None

    @property
    def next_revision(self) -> int:
        return self._watch.next_revision

    def run(self) -> None:
        try:
            for response in self._watch:
                for event in response.events:
                    self.told.append((event.kv.mod_revision, event.SerializeToString()))
                    if event.kv.key == self.prefix + END:
                        return
        except BaseException as error:
            self.error = error
        finally:
            self._client.close()


def history(member: Process, first: int, last: int) -> list[Event]:
    """What a member has in its store from one revision to another."""
    found: list[Event] = []
    with Stream(member.endpoint) as stream:
        stream.create(key=b"\0", range_end=b"\0", start_revision=first, prev_kv=True)
        assert stream.next().created
        for response in stream.until(last):
            assert not response.canceled
            found += [(event.kv.mod_revision, event.SerializeToString()) for event in response.events]
    return [event for event in found if event[0] <= last]


def revision_of(client: Client) -> int:
    return int(client.range("nothing").header.revision)


def watched_through_kills(running: Cluster, kills: int) -> None:
    with running.client() as client:
        listeners = [Listener(running.endpoints, number) for number in range(WATCHERS)]
        writer = Writer(running.endpoints, seed=kills)
        for thread in (*listeners, writer):
            thread.start()
        known: dict[int, list[Event]] = {}
        compacted = 0
        for kill in range(kills):
            before = writer.written
            leader = running.leader()
            leader.kill()
            _wait_written(writer, before + 60)
            leader.start()
            running.wait_ready(leader)
            _wait_written(writer, before + 120)
            if kill == kills // 2:
                known |= by_revision(history(leader, 2, revision_of(client)))
                # Not beyond what anybody may have to ask for after the next kill.
                compacted = min(listener.next_revision for listener in listeners)
                client.compact(compacted, physical=True)
        writer.stop()
        ends = [pb.RequestOp(request_put=pb.PutRequest(key=prefix + END)) for prefix in PREFIXES]
        with running.client() as anew:
            last = anew.txn(pb.TxnRequest(success=ends)).header.revision
        for listener in listeners:
            listener.join(SECONDS)
            assert not listener.is_alive()
            assert listener.error is None
        rest = [by_revision(history(member, compacted, last)) for member in running.members]
        assert rest[0] == rest[1] == rest[2]
        check(listeners, known | rest[0])


def by_revision(events: list[Event]) -> dict[int, list[Event]]:
    return {revision: list(group) for revision, group in itertools.groupby(events, key=lambda event: event[0])}


def check(listeners: list[Listener], known: dict[int, list[Event]]) -> None:
    """Each was told exactly what the store has of its prefix since it began."""
    whole = [event for revision in sorted(known) for event in known[revision]]
    assert len(known) == max(known) - 1, "every revision has events"
    for listener in listeners:
        expected = [
            (revision, encoded)
            for revision, encoded in whole
            if revision >= listener.first and kv_pb2.Event.FromString(encoded).kv.key.startswith(listener.prefix)
        ]
        assert len(expected) > 10
        assert listener.told == expected


def _wait_written(writer: Writer, count: int) -> None:
    while writer.written < count:
        assert writer.is_alive()
        writer.join(0.02)


def test_every_watcher_hears_the_stores_history(three: Cluster) -> None:
    """24 watchers over 10 prefixes, the leader killed three times, a compaction in between."""
    watched_through_kills(three, kills=3)


@pytest.mark.soak
def test_every_watcher_hears_the_stores_history_through_ten_kills(three: Cluster) -> None:
    watched_through_kills(three, kills=10)


def test_without_a_leader_streams_that_want_one_end(three: Cluster) -> None:
    """The others stay; new ones that want a leader are refused."""
    wanting = (("hasleader", "true"),)
    survivor = next(member for member in three.members if member is not three.leader())
    others = [member for member in three.members if member is not survivor]
    with Stream(survivor.endpoint, metadata=wanting) as strict, Stream(survivor.endpoint) as patient:
        for stream in (strict, patient):
            stream.create(key=b"k")
            assert stream.next().created
        with grpc.insecure_channel(survivor.endpoint) as channel:
            observe = channel.unary_stream(
                "/v3electionpb.Election/Observe",
                request_serializer=v3election_pb2.LeaderRequest.SerializeToString,
                response_deserializer=v3election_pb2.LeaderResponse.FromString,
            )
            observed = observe(v3election_pb2.LeaderRequest(name=b"e"), metadata=wanting, timeout=SECONDS)
            # Headers come before there is anything to tell.
            observed.initial_metadata()
            for member in others:
                member.kill()
            assert (observed.code(), observed.details()) == (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
        assert ended(strict) == (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
        with Stream(survivor.endpoint, metadata=wanting) as late:
            late.create(key=b"k")
            assert ended(late) == (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader")
        for member in others:
            member.start()
        three.wait_ready(survivor)
        with three.client() as client:
            client.put("k", "back")
        assert patient.next().events[0].kv.value == b"back"


def test_a_member_that_stops_ends_its_streams(three: Cluster) -> None:
    member = three.members[0]
    with Stream(member.endpoint) as stream:
        stream.create(key=b"k")
        assert stream.next().created
        member.signal(signal.SIGTERM)
        assert ended(stream)[0] is grpc.StatusCode.UNAVAILABLE
        assert member.wait() == 0


def test_a_member_that_goes_silent_is_left_for_another(three: Cluster) -> None:
    """Its connection stays open: only a ping that is not answered tells. gRPC by itself gives it more than a minute."""
    silent = next(member for member in three.members if member is not three.leader())
    rest = [member for member in three.members if member is not silent]
    first = [silent.endpoint, *(member.endpoint for member in rest)]
    told: list[bytes] = []
    with Client(first, dial_timeout=10.0) as client, client.watch("k") as watch:
        watch.ready()
        listener = threading.Thread(target=lambda: told.append(next(watch).events[0].kv.value), daemon=True)
        silent.signal(signal.SIGSTOP)
        try:
            with three.client() as elsewhere:
                elsewhere.put("k", "v")
            listener.start()
            listener.join(SECONDS)
            assert told == [b"v"]
        finally:
            silent.signal(signal.SIGCONT)


def test_a_member_that_catches_up_tells_what_it_missed(three: Cluster) -> None:
    """A watcher on a member that was away: from a revision that this member has not reached yet."""
    away = next(member for member in three.members if member is not three.leader())
    away.kill()
    with three.client() as client:
        for number in range(100):
            client.put("k", str(number))
        away.start()
        three.wait_ready(away)
        with Stream(away.endpoint) as stream:
            stream.create(key=b"k", start_revision=50)
            assert stream.next().created
            told = [event.kv.mod_revision for response in stream.until(101) for event in response.events]
    assert told == list(range(50, 102))


def ended(stream: Stream) -> tuple[grpc.StatusCode, str]:
    """How a stream ends that has nothing more to tell."""
    with pytest.raises(grpc.RpcError) as caught:
        stream.next()
    return caught.value.code(), caught.value.details()
