"""The Watch service against a real etcd: the same writes and watch requests, every answer compared.

After each step everything that it causes is waited for, on both sides, so that nothing depends on timing. What is left
out: ids and terms, which differ between clusters, and the order in which several watchers hear of one revision.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftkv.client import Client
from raftkv.mvcc.interval import interval
from raftkv.pb import kv_pb2
from raftkv.pb import rpc_pb2 as pb
from tests.interop.test_mvcc_oracle import started_etcd_endpoint
from tests.support.processes import cluster
from tests.support.watching import Stream
from tests.unit.watch.world import History

pytestmark = pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd to compare with")

KEYS = [b"a", b"a1", b"a2", b"b", b"c/x", b"c/y", b"\xff"]
SPANS = [
    *((key, b"") for key in KEYS),
    *((b"a", b"b"), (b"c/", b"c0"), (b"\0", b"\0"), (b"a1", b"\0"), (b"a1", b"c/y"), (b"", b"b"), (b"", b"")),
    *((b"b", b"a"), (b"a", b"a")),
]
STEPS = 150
Answers = list[pb.WatchResponse]


class Side:
    """One server and its streams."""

    def __init__(self, endpoint: str) -> None:
        self.client = Client(endpoint)
        self.streams = [Stream(endpoint) for _ in range(3)]

    def take(self, stream: int, count: int) -> Answers:
        answers = [self.streams[stream].next() for _ in range(count)]
        for answer in answers:
            assert answer.header.cluster_id
            assert answer.header.member_id
            assert answer.header.raft_term
            answer.header.CopyFrom(pb.ResponseHeader(revision=answer.header.revision))
        # Stable: the answers of one watcher stay in their order.
        return sorted(answers, key=lambda answer: answer.watch_id)

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        self.client.close()


class Pair:
    """Both servers, and a model that says how many answers each step brings."""

    def __init__(self, ours: str, theirs: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.ours, self.theirs = Side(ours), Side(theirs)
        self.history = History()
        self.revision = 1
        self.compacted = -1
        self.watchers: list[dict[int, pb.WatchCreateRequest]] = [{}, {}, {}]
        self.next_ids = [0, 0, 0]
        self.compared = 0
        self._overtaken: int | None = None

    def step(self) -> None:
        pick = self.random.random()
        if pick < 0.4:
            self.write()
        elif pick < 0.85:
            self.create()
        elif pick < 0.95:
            self.cancel()
        else:
            self.compact()

    def write(self) -> None:
        ops: list[pb.RequestOp] = []
        revision = self.revision + 1
        if self.random.random() < 0.3:
            key, end = self.random.choice(SPANS[: len(KEYS) + 2])
            ops.append(pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end)))
            changed = self.history.delete(revision, key, end) > 0
        else:
            changed = True
            for key in self.random.sample(KEYS, self.random.choice((1, 1, 2, 4))):
                value = self.random.randbytes(self.random.randint(0, 5))
                ops.append(pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)))
                self.history.put(revision, key, value)
        for side in (self.ours, self.theirs):
            side.client.txn(pb.TxnRequest(success=ops))
        if changed:
            self.revision = revision
            for stream, watchers in enumerate(self.watchers):
                self.compare(stream, sum(bool(self.told(request, revision)) for request in watchers.values()))

    def told(self, request: pb.WatchCreateRequest, first: int) -> list[object]:
        return list(self.history.wanted(request, max(first, request.start_revision)))

    def create(self) -> None:
        stream = self.random.randrange(3)
        key, end = self.random.choice(SPANS)
        request = pb.WatchCreateRequest(
            key=key,
            range_end=end,
            start_revision=self.start(),
            prev_kv=self.random.random() < 0.5,
            fragment=self.random.random() < 0.2,
            filters=self.random.choice(([], [], [0], [1], [0, 1])),
            watch_id=self.random.choice((0, 0, 0, 1, 2, 9)),
        )
        for side in (self.ours, self.theirs):
            side.streams[stream].create_as(request)
        following = self._created(stream, request)
        self.compare(stream, 1 + following)
        if self._overtaken is not None:
            # etcd keeps the id of a watcher that compaction ended until it is canceled again; raftkv does not.
            self.theirs.streams[stream].cancel(self._overtaken)
            assert self.theirs.streams[stream].next().canceled

    def start(self) -> int:
        start = self.random.choice(
            (0, 0, self.revision + self.random.randint(1, 4), self.random.randint(1, self.revision))
        )
        deleted = {past.revision for past in self.history.events if past.event.type == kv_pb2.Event.DELETE}
        # etcd 3.4.23 forgets a deletion at the compacted revision.
        return 0 if start == self.compacted and start in deleted else start

    def _created(self, stream: int, request: pb.WatchCreateRequest) -> int:
        """Take note of a watcher; how many answers follow the first."""
        self._overtaken = None
        watchers = self.watchers[stream]
        first, last = interval(request.key or b"\0", request.range_end)
        if (last is not None and last <= first) or (request.watch_id and request.watch_id in watchers):
            return 0
        watch_id = request.watch_id
        if not watch_id:
            while self.next_ids[stream] in watchers:
                self.next_ids[stream] += 1
            watch_id = self.next_ids[stream]
            self.next_ids[stream] += 1
        if 0 < request.start_revision < self.compacted:
            self._overtaken = watch_id
            return 1
        watchers[watch_id] = request
        past = 0 < request.start_revision <= self.revision
        return int(past and bool(self.told(request, 0)))

    def cancel(self) -> None:
        stream = self.random.randrange(3)
        watch_id = self.random.choice([*self.watchers[stream], 77])
        for side in (self.ours, self.theirs):
            side.streams[stream].cancel(watch_id)
        self.compare(stream, int(self.watchers[stream].pop(watch_id, None) is not None))

    def compact(self) -> None:
        revision = self.random.randint(max(1, self.compacted), self.revision)
        if revision > max(self.compacted, 1):
            self.compacted = revision
            for side in (self.ours, self.theirs):
                side.client.compact(revision, physical=True)

    def compare(self, stream: int, count: int) -> None:
        ours, theirs = self.ours.take(stream, count), self.theirs.take(stream, count)
        for answer in ours:
            for event in answer.events:
                # What etcd loses: the value before a change at the compacted revision.
                if event.kv.mod_revision == self.compacted and count and event.HasField("prev_kv"):
                    self._lose(theirs, event)
        assert ours == theirs
        self.compared += count

    def _lose(self, theirs: Answers, event: kv_pb2.Event) -> None:
        for answer in theirs:
            for other in answer.events:
                if other.kv == event.kv and not other.HasField("prev_kv") and event.HasField("prev_kv"):
                    event.ClearField("prev_kv")

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    flags = ("--max-request-bytes", "20000")
    with cluster(tmp_path, 1, *flags) as ours, started_etcd_endpoint(tmp_path, *flags) as theirs:
        pair = Pair(ours.endpoints, theirs, request.param)
        yield pair
        pair.close()


@pytest.mark.parametrize("pair", range(3), indirect=True)
def test_answers_equal_etcds(pair: Pair) -> None:
    for _ in range(STEPS):
        pair.step()
    assert pair.compared > STEPS
    # Nothing more than was waited for: what is left would come before this.
    for stream in range(3):
        for side in (pair.ours, pair.theirs):
            side.streams[stream].create(key=b"b", range_end=b"a")
        pair.compare(stream, 1)


@pytest.mark.parametrize("pair", [1], indirect=True)
def test_fragments_are_cut_where_etcd_cuts_them(pair: Pair) -> None:
    """One revision that deletes 1 MB, told with what it replaced."""
    for side in (pair.ours, pair.theirs):
        for number in range(100):
            side.client.put(f"f/{number:03}", bytes(5_000 + 100 * number))
        side.streams[0].create(key=b"f/", range_end=b"f0", prev_kv=True, fragment=True)
        side.streams[0].create(key=b"f/", range_end=b"f0", prev_kv=True)
        assert side.streams[0].next().created
        assert side.streams[0].next().created
        side.client.delete("f/", prefix=True)
    fragments = [answers(side.streams[0]) for side in (pair.ours, pair.theirs)]
    assert fragments[0] == fragments[1]
    assert [count for count, _ in fragments[0][1]] == [100]
    assert [last for _, last in fragments[0][0]] == [True, False]


def answers(stream: Stream) -> dict[int, list[tuple[int, bool]]]:
    """Events and fragment mark of each answer, by watcher, until both watchers have heard all."""
    found: dict[int, list[tuple[int, bool]]] = {0: [], 1: []}
    while sum(count for counts in found.values() for count, _ in counts) < 200:
        answer = stream.next()
        found[answer.watch_id].append((len(answer.events), answer.fragment))
    return found
