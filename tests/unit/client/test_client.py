"""Both clients against real servers, and against servers that fail."""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raftkv import errors
from raftkv.client import AsyncClient, Client, ClientError, NotConnected, OutcomeUnknown, Refused, Unavailable
from raftkv.client.secure import ClientTls
from raftkv.pb import rpc_pb2
from raftkv.status import Code
from tests.cli.servers import KINDS, serve
from tests.support.certificates import Authority
from tests.support.processes import cluster
from tests.unit.client.faulty import answer, blackhole, close, faulty, refusing, silence

UNAVAILABLE = int(Code.UNAVAILABLE)


class Blocking:
    """An AsyncClient with the methods of a Client."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **options)

    def __enter__(self) -> "Blocking":
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def collect(*arguments: Any, **options: Any) -> list[Any]:
            return [page async for page in method(*arguments, **options)]

        call = collect if inspect.isasyncgenfunction(method) else method
        return lambda *arguments, **options: self._runner.run(call(*arguments, **options))


Connect = Callable[..., Any]


@pytest.fixture(params=[Client, Blocking], ids=["sync", "aio"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes clients; they are patient unless a test is about their patience."""
    kind = request.param
    return lambda endpoints, **options: kind(endpoints, **{"timeout": 60.0, "dial_timeout": 60.0, **options})


@pytest.fixture(scope="module", params=KINDS)
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(request.param, tmp_path_factory.mktemp("server")) as endpoint:
        yield endpoint


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key nobody else uses."""
    return f"{request.node.name}/"


def test_put_get_delete(connect: Connect, live: str, key: str) -> None:
    with connect(live) as client:
        assert client.get(key) is None
        revision = client.put(key, "1").header.revision
        assert client.put(key, b"\xff\x00", prev_kv=True).prev_kv.value == b"1"
        found = client.get(key)
        assert (found.value, found.version, found.create_revision) == (b"\xff\x00", 2, revision)
        assert client.get(key, revision=revision).value == b"1"
        assert client.get(key, serializable=True).value == b"\xff\x00"
        deleted = client.delete(key, prev_kv=True)
        assert (deleted.deleted, deleted.prev_kvs[0].value) == (1, b"\xff\x00")
        assert client.get(key) is None


def test_range(connect: Connect, live: str, key: str) -> None:
    with connect(f"http://{live}") as client:
        for number in range(5):
            client.put(f"{key}{number}", str(number))
        assert [kv.value for kv in client.range(key, prefix=True, limit=2).kvs] == [b"0", b"1"]
        assert [kv.value for kv in client.range(f"{key}1", f"{key}3").kvs] == [b"1", b"2"]
        assert [kv.value for kv in client.range(key, prefix=True, keys_only=True).kvs] == [b""] * 5
        counted = client.range(key, prefix=True, count_only=True)
        assert (counted.count, len(counted.kvs)) == (5, 0)
        assert client.delete(key, prefix=True).deleted == 5


def test_txn(connect: Connect, live: str, key: str) -> None:
    request = rpc_pb2.TxnRequest(
        compare=[rpc_pb2.Compare(key=key.encode(), target=rpc_pb2.Compare.VERSION, version=0)],
        success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key.encode(), value=b"1"))],
        failure=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key.encode()))],
    )
    with connect(live) as client:
        assert client.txn(request).succeeded
        second = client.txn(request)
        assert not second.succeeded
        assert second.responses[0].response_range.kvs[0].value == b"1"


def test_pages_are_of_one_revision_and_complete(connect: Connect, live: str, key: str) -> None:
    with connect(live) as client:
        for number in range(300):
            client.put(f"{key}{number:03}", b"x" * 100)
        whole = rpc_pb2.RangeRequest(key=key.encode(), range_end=key[:-1].encode() + b"0")
        pages = list(client.pages(whole, page_bytes=5_000))
        assert len(pages) > 3
        assert [kv.key for page in pages for kv in page.kvs] == [f"{key}{number:03}".encode() for number in range(300)]
        assert pages[0].count == 300
        limited = rpc_pb2.RangeRequest(limit=150)
        limited.MergeFrom(whole)
        assert sum(len(page.kvs) for page in client.pages(limited, page_bytes=5_000)) == 150


def test_pages_do_not_see_later_writes(live: str, key: str) -> None:
    with Client(live) as client:
        for number in range(100):
            client.put(f"{key}{number:03}", "old")
        whole = rpc_pb2.RangeRequest(key=key.encode(), range_end=key[:-1].encode() + b"0")
        pages = client.pages(whole, page_bytes=1)
        first = next(pages)
        client.put(f"{key}099", "new")
        client.delete(f"{key}098")
        kvs = [*first.kvs, *(kv for page in pages for kv in page.kvs)]
        assert len(kvs) == 100
        assert {kv.value for kv in kvs} == {b"old"}


def test_errors_are_etcds_and_the_clients(connect: Connect, live: str) -> None:
    with connect(live) as client:
        with pytest.raises(errors.FutureRev) as caught:
            client.compact(1 << 60)
        assert isinstance(caught.value, Refused)
        assert caught.value.code is Code.OUT_OF_RANGE
        with pytest.raises(errors.EmptyKey):
            client.put("", "x")
        with pytest.raises(ClientError, match="requested lease not found"):
            client.put("k", "x", lease=99)


def test_cluster_and_maintenance(connect: Connect, live: str) -> None:
    with connect(live) as client:
        members = client.member_list()
        assert [member.name for member in members.members] == ["m0"]
        assert client.status().leader == members.members[0].ID
        assert client.status(f"http://{live}").header.member_id == members.members[0].ID
        assert client.health(live) > 0


@pytest.mark.parametrize("bad", [refusing, blackhole])
def test_an_endpoint_that_cannot_be_reached_is_passed_by(connect: Connect, live: str, key: str, bad: Any) -> None:
    with bad() as endpoint, connect([endpoint, live], timeout=30.0) as client:
        client.put(key, "1")
        assert client.get(key).value == b"1"


def test_no_endpoint_can_be_reached(connect: Connect) -> None:
    with refusing() as one, blackhole() as two, connect([one, two], dial_timeout=0.3) as client:
        with pytest.raises(NotConnected, match=f"could not connect to {one}, {two}"):
            client.put("k", "v")
        with pytest.raises(Unavailable):
            client.get("k")
        with pytest.raises(Unavailable, match=f"could not connect to {one}$"):
            client.status(one)


def test_calls_that_wait_for_one_secured_connection_end_alike_when_it_does_not_come(tmp_path: Path) -> None:
    """The first that gives up closes what the others wait for."""
    tls = ClientTls(ca=Authority(tmp_path / "ca").file)

    async def call(client: AsyncClient, number: int) -> BaseException | None:
        await asyncio.sleep(number / 100)
        try:
            await client.put("k", "v")
        except ClientError as error:
            return error
        return None

    async def main() -> None:
        with blackhole() as endpoint:
            async with AsyncClient(endpoint, tls=tls, dial_timeout=0.3) as client:
                ended = await asyncio.gather(*(call(client, number) for number in range(20)))
        assert {type(error) for error in ended} == {NotConnected}

    asyncio.run(main())


def test_a_write_whose_connection_broke_is_not_repeated(connect: Connect, live: str, key: str) -> None:
    with faulty(close) as server, connect([server.endpoint, live]) as client:
        with pytest.raises(OutcomeUnknown) as caught:
            client.put(key, "1")
        assert caught.value.code is Code.UNAVAILABLE
        assert len(server.requests) == 1
        assert client.get(key) is None, "the other endpoint got the write"


def test_a_read_whose_connection_broke_goes_elsewhere(connect: Connect, live: str, key: str) -> None:
    with faulty(close) as server, connect([server.endpoint, live]) as client:
        assert client.get(key) is None
        assert len(server.requests) == 1


def test_a_read_that_breaks_everywhere_ends(connect: Connect) -> None:
    with faulty(close) as one, faulty(close) as two, connect([one.endpoint, two.endpoint]) as client:
        with pytest.raises(Unavailable):
            client.get("k")
        assert (len(one.requests), len(two.requests)) == (1, 1)


def test_a_transaction_is_repeated_only_if_it_reads(connect: Connect, live: str, key: str) -> None:
    read = rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key.encode()))
    write = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key.encode()))
    nested = rpc_pb2.RequestOp(request_txn=rpc_pb2.TxnRequest(success=[write]))
    for ops in ([read, write], [nested]):
        with faulty(close) as server, connect([server.endpoint, live]) as client:
            with pytest.raises(OutcomeUnknown):
                client.txn(rpc_pb2.TxnRequest(failure=ops))
            assert len(server.requests) == 1
    with faulty(close) as server, connect([server.endpoint, live]) as client:
        assert client.txn(rpc_pb2.TxnRequest(success=[read])).succeeded
        assert len(server.requests) == 1


def test_silence_is_an_unknown_outcome_and_the_next_call_goes_elsewhere(connect: Connect, live: str, key: str) -> None:
    with faulty(silence) as server, connect([server.endpoint, live], timeout=3.0) as client:
        with pytest.raises(OutcomeUnknown) as caught:
            client.put(key, "1")
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        client.put(key, "2")
        assert client.get(key).version == 1
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (Code.UNAVAILABLE, "etcdserver: request timed out", OutcomeUnknown),
        (Code.UNAVAILABLE, "etcdserver: leader changed", OutcomeUnknown),
        (Code.UNAVAILABLE, "etcdserver: server stopped", OutcomeUnknown),
        (Code.UNAVAILABLE, "failed to connect to all addresses", OutcomeUnknown),
        (Code.INTERNAL, "handler failed", OutcomeUnknown),
        (Code.RESOURCE_EXHAUSTED, "grpc: trying to send message larger than max (5 vs. 4)", OutcomeUnknown),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Refused),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Refused),
        (Code.INVALID_ARGUMENT, "etcdserver: request is too large", Refused),
        (Code.UNIMPLEMENTED, "unknown service", Refused),
    ],
)
def test_an_answer_to_a_write_is_final(
    connect: Connect, code: Code, message: str, kind: type[ClientError], key: str
) -> None:
    with faulty(answer(int(code), message)) as one, faulty(silence) as two:
        with connect([one.endpoint, two.endpoint]) as client, pytest.raises(kind) as caught:
            client.put(key, "1")
        assert (caught.value.code, caught.value.message) == (code, message)
        assert (len(one.requests), len(two.requests)) == (1, 0)


def test_a_member_without_a_leader_did_not_propose(connect: Connect, live: str, key: str) -> None:
    with faulty(answer(UNAVAILABLE, "etcdserver: no leader")) as lonely, connect([lonely.endpoint, live]) as client:
        client.put(key, "1")
        assert client.get(key).version == 1
        assert len(lonely.requests) == 1


def test_waits_for_an_election_until_the_time_is_up(connect: Connect) -> None:
    no_leader = answer(UNAVAILABLE, "etcdserver: no leader")
    with faulty(no_leader) as one, faulty(no_leader) as two:
        with connect([one.endpoint, two.endpoint], timeout=3.0) as client, pytest.raises(errors.NoLeader) as caught:
            client.put("k", "v")
        assert isinstance(caught.value, Refused)
        assert len(one.requests) + len(two.requests) > 2


def test_only_what_needs_a_leader_asks_for_one(connect: Connect) -> None:
    with faulty(answer(int(Code.UNIMPLEMENTED), "no")) as server, connect(server.endpoint) as client:
        calls = [
            lambda: client.put("k", "v"),
            lambda: client.get("k"),
            lambda: client.get("k", serializable=True),
            client.status,
            client.member_list,
        ]
        for call in calls:
            with pytest.raises(Refused):
                call()
        assert ["hasleader" in headers for headers in server.requests] == [True, True, False, False, False]


def gone(client: Any) -> bool:
    """Whether the client knows that it has no connection."""
    try:
        client.status()
    except NotConnected:
        return True
    except Unavailable:
        pass
    return False


def test_a_write_to_a_member_known_to_be_gone_is_not_sent(connect: Connect, tmp_path: Path) -> None:
    def put_when_connected(value: str) -> None:
        while True:
            # What was not sent may be sent again.
            with contextlib.suppress(NotConnected):
                client.put("k", value)
                return

    with cluster(tmp_path, 1) as running, connect(running.endpoints, dial_timeout=0.3) as client:
        put_when_connected("1")
        running.kill()
        # Reads may meet the connection while it breaks; when they say so it is known to be broken.
        for _ in iter(lambda: gone(client), True):
            pass
        with pytest.raises(NotConnected):
            client.put("k", "2")
        running.start()
        put_when_connected("3")
        assert client.get("k").version == 2


def test_threads_share_a_client(live: str, key: str) -> None:
    with refusing() as dead, Client([dead, live], timeout=30.0) as client:

        def work(number: int) -> None:
            for repeat in range(20):
                client.put(f"{key}{number}", str(repeat))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [kv.version for kv in client.range(key, prefix=True).kvs] == [20] * 8


def test_tasks_share_a_client(live: str, key: str) -> None:
    async def work() -> list[int]:
        async with AsyncClient(live, timeout=30.0) as client:
            await asyncio.gather(*(client.put(f"{key}{number % 8}", "v") for number in range(160)))
            return [kv.version for kv in (await client.range(key, prefix=True)).kvs]

    assert asyncio.run(work()) == [20] * 8


def test_a_call_at_one_endpoint_waits_for_the_member_to_come_back(connect: Connect, tmp_path: Path) -> None:
    with (
        cluster(tmp_path, 1) as running,
        connect(running.endpoints, timeout=90.0, dial_timeout=90.0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running.kill()
        asked = pool.submit(client.status, running.members[0].endpoint)
        with pytest.raises(TimeoutError):
            asked.result(0.2)
        running.start()
        assert asked.result(90.0).header.member_id
