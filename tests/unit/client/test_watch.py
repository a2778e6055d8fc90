"""The clients' watches: what comes, what breaks, and where they go on."""

import asyncio
import contextlib
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from raftkv import errors
from raftkv.client import AsyncClient, Client, NotConnected, Refused, Watch, WatchCompacted
from raftkv.client.watching import Place
from raftkv.pb import kv_pb2
from raftkv.pb import rpc_pb2 as pb
from raftkv.status import Code
from tests.cli.servers import KINDS, serve
from tests.support.processes import cluster
from tests.unit.client.faulty import refusing


@pytest.fixture(scope="module", params=KINDS)
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(request.param, tmp_path_factory.mktemp("server")) as endpoint:
        yield endpoint


def values(watch: Watch, count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        found += [event.kv.value for event in next(watch).events]
    return found


def test_changes_come_with_what_they_replaced(live: str) -> None:
    with Client(live) as client, client.watch("c/", prefix=True, prev_kv=True) as watch:
        watch.ready()
        client.put("c/1", "a")
        client.put("c/1", "b")
        client.put("elsewhere", "x")
        revision = client.delete("c/1").header.revision
        events = [next(watch).events[0] for _ in range(3)]
        assert [event.type for event in events] == [kv_pb2.Event.PUT, kv_pb2.Event.PUT, kv_pb2.Event.DELETE]
        assert [event.prev_kv.value for event in events] == [b"", b"a", b"b"]
        assert watch.next_revision == revision + 1


def test_the_past_and_filters(live: str) -> None:
    with Client(live) as client:
        first = client.put("p", "1").header.revision
        client.delete("p")
        client.put("p", "2")
        with client.watch("p", start_revision=first) as watch:
            assert values(watch, 3) == [b"1", b"", b"2"]
        with client.watch("p", start_revision=first, deletes=False) as watch:
            assert values(watch, 2) == [b"1", b"2"]
        with client.watch("p", start_revision=first, puts=False) as watch:
            assert values(watch, 1) == [b""]


def test_progress_on_demand(live: str) -> None:
    with Client(live) as client, client.watch("progress") as watch:
        watch.ready()
        revision = client.put("elsewhere", "").header.revision
        watch.request_progress()
        answer = next(watch)
        assert (len(answer.events), answer.header.revision) == (0, revision)
        assert watch.next_revision == revision + 1


def test_compacted_history_is_an_error_of_its_own(live: str) -> None:
    with Client(live) as client:
        first = client.put("old", "1").header.revision
        last = client.put("old", "2").header.revision
        client.compact(last)
        with client.watch("old", start_revision=first) as watch:
            with pytest.raises(WatchCompacted) as caught:
                next(watch)
            assert caught.value.compact_revision == last
            assert isinstance(caught.value, errors.Compacted)
            assert next(watch, None) is None
        with client.watch("old", start_revision=last) as watch:
            assert values(watch, 1) == [b"2"]
        assert pickle.loads(pickle.dumps(caught.value)).compact_revision == last


def test_a_refused_watch_says_why(live: str) -> None:
    with Client(live) as client, client.watch("b", "a") as watch, pytest.raises(Refused, match="range is empty"):
        next(watch)


def test_closing_ends_a_thread_that_waits(live: str) -> None:
    with Client(live) as client:
        watch = client.watch("nothing")
        watch.ready()
        ended = threading.Event()

        def wait() -> None:
            assert list(watch) == []
            ended.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        watch.close()
        assert ended.wait(10)
        waiting.join()


def test_a_cancelled_wait_loses_nothing(live: str) -> None:
    async def run() -> None:
        async with AsyncClient(live) as client, client.watch("cancelled") as watch:
            await watch.ready()
            told: list[bytes] = []
            for number in range(20):
                await client.put("cancelled", str(number))
                try:
                    async with asyncio.timeout(0.001 * (number % 4)):
                        told += [event.kv.value for event in (await anext(watch)).events]
                except TimeoutError:
                    continue
            while len(told) < 20:
                told += [event.kv.value for event in (await anext(watch)).events]
            assert told == [b"%d" % number for number in range(20)]

    asyncio.run(run())


def test_nobody_to_talk_to() -> None:
    with refusing() as endpoint, Client(endpoint, dial_timeout=0.3) as client:
        with client.watch("k") as watch, pytest.raises(NotConnected):
            watch.ready()
        with pytest.raises(ValueError, match="revision"):
            client.watch("k", start_revision=-1)


def test_a_member_that_is_killed_is_left_and_found_again(tmp_path: Path) -> None:
    """Each value exactly once, though the member that tells is killed twice."""
    with cluster(tmp_path, 1) as members, Client(members.endpoints) as client, client.watch("k") as watch:
        watch.ready()
        told: list[bytes] = []
        for number in range(20):
            if number % 8 == 7:
                members.members[0].kill()
                members.members[0].start()
                members.wait_ready(members.members[0])
            client.put("k", str(number))
            if number % 3 == 0:
                told += values(watch, 1)
        told += values(watch, 20 - len(told))
        assert told == [b"%d" % number for number in range(20)]


# The place, without a server


def response(*revisions: int, fragment: bool = False, header: int = 99) -> pb.WatchResponse:
    events = [kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"k", mod_revision=revision)) for revision in revisions]
    return pb.WatchResponse(header=pb.ResponseHeader(revision=header), fragment=fragment, events=events)


def revisions(told: pb.WatchResponse | None) -> list[int]:
    return [] if told is None else [event.kv.mod_revision for event in told.events]


FULL = "rpc error: code = ResourceExhausted desc = no room"


class Scripted:
    """A server that answers each Watch with the same, and counts how often it is asked."""

    def __init__(self, *answers: pb.WatchResponse, code: grpc.StatusCode | None = None) -> None:
        self._answers = answers
        self._code = code
        self.asked = 0
        self._server = grpc.server(ThreadPoolExecutor(4))
        handler = grpc.stream_stream_rpc_method_handler(
            self._watch, pb.WatchRequest.FromString, pb.WatchResponse.SerializeToString
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("etcdserverpb.Watch", {"Watch": handler}),)
        )
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _watch(self, requests: Iterator[pb.WatchRequest], context: grpc.ServicerContext) -> Iterator[pb.WatchResponse]:
        next(requests)
        self.asked += 1
        if self.asked > 5:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "asked again and again")
        yield from self._answers
        if self._code is not None:
            context.abort(self._code, "no room")
        next(requests, None)

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()


def full(by: str) -> Scripted:
    if by == "status":
        return Scripted(code=grpc.StatusCode.RESOURCE_EXHAUSTED)
    return Scripted(pb.WatchResponse(created=True, canceled=True, watch_id=-1, cancel_reason=FULL))


@pytest.mark.parametrize("by", ["answer", "status"])
def test_a_server_that_has_no_room_is_left_for_one_that_has(by: str) -> None:
    header = pb.ResponseHeader(revision=5)
    event = kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"k", mod_revision=6))
    told = (pb.WatchResponse(header=header, created=True), pb.WatchResponse(header=header, events=[event]))
    with full(by) as one, full(by) as two, Scripted(*told) as roomy:
        with Client([one.endpoint, two.endpoint, roomy.endpoint]) as client, client.watch("k") as watch:
            assert next(watch).events[0].kv.mod_revision == 6
        assert (one.asked, two.asked, roomy.asked) == (1, 1, 1)


@pytest.mark.parametrize("by", ["answer", "status"])
@pytest.mark.parametrize("count", [1, 2])
def test_when_no_server_has_room_each_is_asked_once_and_the_watch_says_so(by: str, count: int) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(full(by)) for _ in range(count)]
        with Client([server.endpoint for server in servers]) as client, client.watch("k") as watch:
            with pytest.raises(Refused, match=r"^no room$") as caught:
                watch.ready()
            assert caught.value.code is Code.RESOURCE_EXHAUSTED
            assert next(watch, None) is None
        assert [server.asked for server in servers] == [1] * count


def test_a_watch_that_ends_for_too_much_after_it_began_is_over() -> None:
    """Such is an answer that is larger than this client takes: elsewhere it is as large."""
    began = pb.WatchResponse(header=pb.ResponseHeader(revision=5), created=True)
    with (
        Scripted(began, code=grpc.StatusCode.RESOURCE_EXHAUSTED) as one,
        Scripted(began, code=grpc.StatusCode.RESOURCE_EXHAUSTED) as two,
    ):
        with (
            Client([one.endpoint, two.endpoint]) as client,
            client.watch("k") as watch,
            pytest.raises(Refused, match="no room"),
        ):
            next(watch)
        assert one.asked + two.asked == 1


def test_what_came_twice_is_dropped() -> None:
    place = Place(pb.WatchCreateRequest(key=b"k", start_revision=5))
    assert revisions(place.take(response(5, 6, 6))) == [5, 6, 6]
    assert place.request().create_request.start_revision == 7
    assert place.take(response(5, 6)) is None
    assert revisions(place.take(response(6, 7))) == [7]


def test_fragments_are_told_whole_or_not_at_all() -> None:
    place = Place(pb.WatchCreateRequest(key=b"k", start_revision=5))
    assert place.take(response(5, 6, fragment=True)) is None
    assert place.request().create_request.start_revision == 5
    assert place.take(response(5, 6, fragment=True)) is None
    assert revisions(place.take(response(6, 6))) == [5, 6, 6, 6]


def test_progress_moves_the_place_and_never_back() -> None:
    place = Place(pb.WatchCreateRequest(key=b"k"))
    place.take(pb.WatchResponse(header=pb.ResponseHeader(revision=10), created=True))
    assert place.next_revision == 11
    assert place.take(response(header=20)) is not None
    assert place.request().create_request.start_revision == 21
    assert place.take(response(header=15)) is None
    assert place.next_revision == 21
