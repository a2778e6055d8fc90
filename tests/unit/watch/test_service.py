"""The Watch service of a running member, spoken to by grpcio."""

import contextlib
import re
import threading
import time
import urllib.request
from collections.abc import Iterator

import grpc
import pytest

from raftkv.client import Client
from raftkv.pb import kv_pb2
from raftkv.pb import rpc_pb2 as pb
from tests.support.processes import Cluster, cluster
from tests.support.watching import Stream


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("watched"), 1, "--watch-progress-notify-interval", "200ms") as members:
        yield members


@pytest.fixture
def endpoint(running: Cluster) -> str:
    return running.endpoints


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    with Client(endpoint) as client:
        yield client


@pytest.fixture
def stream(endpoint: str) -> Iterator[Stream]:
    with Stream(endpoint) as stream:
        yield stream


def revision_of(client: Client) -> int:
    return int(client.range("nothing").header.revision)


def test_created_event_canceled(stream: Stream, client: Client) -> None:
    now = revision_of(client)
    stream.create(key=b"k", prev_kv=True)
    created = stream.next()
    assert (created.watch_id, created.created, created.canceled, created.header.revision) == (0, True, False, now)
    client.put("k", "1")
    client.put("k", "2")
    client.delete("k")
    first, second, third = (stream.next() for _ in range(3))
    assert [response.header.revision for response in (first, second, third)] == [now + 1, now + 2, now + 3]
    assert not first.events[0].HasField("prev_kv")
    assert second.events[0].prev_kv == first.events[0].kv
    assert third.events[0] == kv_pb2.Event(
        type=kv_pb2.Event.DELETE, kv=kv_pb2.KeyValue(key=b"k", mod_revision=now + 3), prev_kv=second.events[0].kv
    )
    stream.cancel(0)
    canceled = stream.next()
    assert (canceled.watch_id, canceled.created, canceled.canceled) == (0, False, True)
    assert canceled.header.revision == now + 3
    assert canceled.header.raft_term > 0


def test_a_lease_that_ends_deletes_its_keys_in_one_answer(stream: Stream, client: Client) -> None:
    """All at one revision, in the order of keys, each with what it was; so when it is revoked, so when it expires."""
    stream.create(key=b"leased/", range_end=b"leased0", prev_kv=True)
    assert stream.next().created
    for revoke in (True, False):
        lease = client.lease_grant(1000 if revoke else 5).ID
        puts = [pb.PutRequest(key=b"leased/%d" % number, value=b"%d" % number, lease=lease) for number in range(5)]
        client.txn(pb.TxnRequest(success=[pb.RequestOp(request_put=put) for put in puts]))
        assert [event.kv.lease for event in stream.next().events] == [lease] * 5
        if revoke:
            client.lease_revoke(lease)
        answer = stream.next()
        told = [(event.type, event.kv.key, event.prev_kv.value, event.prev_kv.lease) for event in answer.events]
        assert told == [(kv_pb2.Event.DELETE, b"leased/%d" % number, b"%d" % number, lease) for number in range(5)]
        assert {event.kv.mod_revision for event in answer.events} == {answer.header.revision}


def test_periodic_progress_of_quiet_watchers(stream: Stream, client: Client) -> None:
    """kine 250: who asked for it was never told."""
    stream.create(key=b"quiet", progress_notify=True)
    stream.create(key=b"quiet")
    assert [stream.next().created, stream.next().created] == [True, True]
    client.put("elsewhere", "")
    now = revision_of(client)
    while (response := stream.next()).header.revision < now:
        assert response.watch_id == 0
        assert not response.events
    assert response.watch_id == 0
    assert not response.events


def test_a_client_that_stops_asking_still_hears(endpoint: str, client: Client) -> None:
    with Stream(endpoint) as stream:
        stream.create(key=b"half")
        assert stream.next().created
        stream.half_close()
        client.put("half", "closed")
        assert stream.next().events[0].kv.value == b"closed"


def test_a_client_that_goes_away_leaves_nothing(endpoint: str, client: Client) -> None:
    with Stream(endpoint) as stream:
        stream.create(key=b"gone")
        assert stream.next().created
        assert watchers(endpoint) >= 1
    deadline = time.monotonic() + 90
    while watchers(endpoint):
        assert time.monotonic() < deadline


def watchers(endpoint: str) -> float:
    """How many there are, as /metrics has it."""
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=90) as response:
        text = response.read().decode()
    found = re.search(r"^etcd_debugging_mvcc_watcher_total (\S+)$", text, re.MULTILINE)
    assert found
    return float(found[1])


def test_a_request_that_is_none_ends_the_stream(endpoint: str) -> None:
    with grpc.insecure_channel(endpoint) as channel:
        call = channel.stream_stream("/etcdserverpb.Watch/Watch")(iter([b"\x0a\xff"]), timeout=90)
        with pytest.raises(grpc.RpcError) as error:
            next(call)
        assert error.value.code() is grpc.StatusCode.INTERNAL


def test_a_reader_that_stops_holds_up_nobody_and_costs_little(running: Cluster, client: Client) -> None:
    """200 MB for ten clients that read nothing: it must not be kept, and all of it must come in the end."""
    endpoint = running.endpoints
    with contextlib.ExitStack() as stack:
        quick = stack.enter_context(Stream(endpoint))
        slow = [stack.enter_context(Stream(endpoint, read=False)) for _ in range(10)]
        for stream in (quick, *slow):
            stream.create(key=b"big", start_revision=revision_of(client) + 1)
        assert quick.next().created
        client.put("big", "")
        assert quick.next().events
        before = running.members[0].resident_bytes()
        for number in range(100):
            client.put("big", bytes(200_000))
            assert [event.kv.version for event in quick.next().events] == [number + 2]
        # What the store itself holds of 20 MB is in here.
        assert running.members[0].resident_bytes() - before < 100 << 20
        for stream in slow:
            stream.read()
            assert stream.next().created
            versions: list[int] = []
            while not versions or versions[-1] < 101:
                versions += [event.kv.version for event in stream.next().events]
            assert versions == list(range(1, 102))


def test_progress_is_a_fence_while_others_write_at_full_rate(running: Cluster) -> None:
    """Requests for progress between writes, on a stream that reads and on one that pauses: no event comes after it."""
    endpoint = running.endpoints
    with Stream(endpoint) as quick, Stream(endpoint, read=False) as slow, Client(endpoint) as client:
        for stream in (quick, slow):
            stream.create(key=b"fence", range_end=b"fencf", start_revision=revision_of(client) + 1)
        assert quick.next().created
        writers = [threading.Thread(target=write, args=(endpoint, number)) for number in range(4)]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            for stream in (quick, slow):
                stream.progress()
            writers[0].join(0.001)
        for writer in writers:
            writer.join()
        last = client.put("fence/last", "").header.revision
        slow.read()
        assert slow.next().created
        for stream in (quick, slow):
            announced = 0
            for response in stream.until(last):
                if response.events:
                    assert response.events[0].kv.mod_revision > announced
                else:
                    assert response.watch_id == -1
                    assert response.header.revision >= announced
                    announced = response.header.revision
            stream.progress()
            response = stream.next()
            assert (response.watch_id, response.header.revision) == (-1, last)


def write(endpoint: str, number: int) -> None:
    with Client(endpoint) as client:
        for count in range(150):
            client.put(f"fence/{number}/{count}", bytes(2000))
