"""Two or three transports over real sockets, hosted by the server that members use."""

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc.aio
import pytest

from raftkv.http import HttpServer, listen
from raftkv.peer import PeerTransport, reception, transport
from raftkv.raft import AppendEntries, Entry, EntryKind, Heartbeat, Message
from raftkv.rpc import App

CLUSTER = 0xC1
BOUND_SECONDS = 90.0


class Host:
    """One member's transport behind a port that it can leave and take again."""

    def __init__(self, member_id: int, *, port: int = 0, cluster_id: int = CLUSTER) -> None:
        self.member_id = member_id
        self.cluster_id = cluster_id
        self.received: list[Message] = []
        self.unreachable: list[int] = []
        self.admitted: list[int] = []
        self.arrived = asyncio.Event()
        self._listener = listen("127.0.0.1", port)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.transport: PeerTransport | None = None
        self._server: HttpServer | None = None

    async def start(self, peers: dict[int, list[str]]) -> None:
        self.transport = PeerTransport(
            self.cluster_id,
            self.member_id,
            peers,
            on_messages=self._take,
            on_unreachable=self._lost,
            admit=self._admit,
            rng=random.Random(self.member_id),
        )
        app = App(self.transport.methods(), max_receive_bytes=(1 << 31) - 1)
        self._server = HttpServer(app, self._listener, max_concurrent_streams=100)
        await self._server.start()
        self.transport.start()

    async def _admit(self, member: int) -> None:
        self.admitted.append(member)

    def _take(self, *messages: Message) -> None:
        assert all(message.sender in self.admitted for message in messages)
        self.received += messages
        self.arrived.set()

    def _lost(self, peer: int) -> None:
        self.unreachable.append(peer)
        self.arrived.set()

    def send(self, *messages: Message) -> None:
        assert self.transport is not None
        self.transport.send(messages)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.arrived.clear()
            await self.arrived.wait()

    async def stop(self) -> None:
        if self.transport is not None:
            await self.transport.close()
        if self._server is not None:
            await self._server.stop()
        self._listener.close()


def run(test: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            await test

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def hosts(*member_ids: int) -> AsyncIterator[list[Host]]:
    made = [Host(member_id) for member_id in member_ids]
    urls = {host.member_id: [host.url] for host in made}
    try:
        for host in made:
            await host.start(urls)
        yield made
    finally:
        await asyncio.gather(*(host.stop() for host in made))


def heartbeat(sender: int, to: int, number: int = 0) -> Heartbeat:
    return Heartbeat(sender, to, 1, number, b"")


def append(sender: int, to: int, number: int, size: int = 10) -> AppendEntries:
    return AppendEntries(sender, to, 1, number, 1, [Entry(1, number + 1, EntryKind.NORMAL, bytes(size))], 0)


async def connect(a: Host, b: Host) -> None:
    """Repeat a heartbeat, as Raft does, until one arrives; then forget them all."""
    while not b.received:
        a.send(heartbeat(a.member_id, b.member_id))
        b.arrived.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(b.arrived.wait(), 0.05)
    # The last of each lane: what was sent before has arrived too.
    a.send(heartbeat(a.member_id, b.member_id, 999_999))
    await b.until(lambda: isinstance(b.received[-1], Heartbeat) and b.received[-1].commit == 999_999)
    b.received.clear()


def test_three_members_hear_each_other_in_order() -> None:
    async def scenario() -> None:
        async with hosts(1, 2, 3) as group:
            pairs = [(a, b) for a in group for b in group if a is not b]
            for a, b in pairs:
                await connect(a, b)
            for start in range(0, 300, 10):
                for a, b in pairs:
                    a.send(*(append(a.member_id, b.member_id, start + number) for number in range(10)))
                await asyncio.sleep(0)
            for _, b in pairs:
                await b.until(lambda b=b: len(b.received) == 600)  # type: ignore[misc]
            for a, b in pairs:
                heard = [m for m in b.received if m.sender == a.member_id]
                assert heard == [append(a.member_id, b.member_id, number) for number in range(300)]

    run(scenario())


def test_a_message_larger_than_a_batch_and_the_bound_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_BULK_BYTES", 1 << 20)

    async def scenario() -> None:
        async with hosts(1, 2) as (a, b):
            await connect(a, b)
            a.send(append(1, 2, 7, 20 << 20))
            await b.until(lambda: len(b.received) == 1)
            assert b.received == [append(1, 2, 7, 20 << 20)]

    run(scenario())


def test_a_heartbeat_overtakes_waiting_entries_but_entries_keep_their_order() -> None:
    async def scenario() -> None:
        async with hosts(1, 2) as (a, b):
            await connect(a, b)
            a.send(*(append(1, 2, number, 600 << 10) for number in range(20)), heartbeat(1, 2, 5))
            await b.until(lambda: len(b.received) == 21)
            # All 21 were queued in one turn, so the heartbeat opens the first batch.
            assert b.received[0] == heartbeat(1, 2, 5)
            assert b.received[1:] == [append(1, 2, number, 600 << 10) for number in range(20)]

    run(scenario())


def test_what_is_sent_together_travels_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    decode = transport.codec.decode_batch

    def counting(batch: bytes) -> Any:
        messages = list(decode(batch))
        batches.append(len(messages))
        return messages

    async def scenario() -> None:
        async with hosts(1, 2) as (a, b):
            await connect(a, b)
            monkeypatch.setattr(transport.codec, "decode_batch", counting)
            a.send(*(append(1, 2, number) for number in range(50)))
            await b.until(lambda: len(b.received) == 50)

    run(scenario())
    assert batches == [50]


def test_a_restarted_peer_is_found_again() -> None:
    async def scenario() -> None:
        async with hosts(1, 2) as (a, b):
            await connect(a, b)
            await b.stop()
            await a.until(lambda: 2 in a.unreachable)
            again = Host(2, port=b.port)
            try:
                await again.start({1: [a.url], 2: [b.url]})
                await connect(a, again)
                await connect(again, a)
                a.send(append(1, 2, 1))
                await again.until(lambda: len(again.received) == 1)
            finally:
                await again.stop()

    run(scenario())


def test_an_outage_is_reported_once_and_the_next_one_again() -> None:
    async def scenario() -> None:
        async with hosts(1, 2) as (a, b):
            await connect(a, b)
            a.unreachable.clear()
            await b.stop()
            await a.until(lambda: a.unreachable == [2])
            for number in range(1000):
                a.send(heartbeat(1, 2, number), append(1, 2, number))
            await asyncio.sleep(0)
            assert a.unreachable == [2]
            again = Host(2, port=b.port)
            await again.start({1: [a.url], 2: [b.url]})
            await connect(a, again)
            await again.stop()
            await a.until(lambda: a.unreachable == [2, 2])
            assert a.transport.disconnections == {2: 2}
            assert a.transport.failures[2] >= 2

    run(scenario())


def test_after_an_outage_only_the_newest_urgent_messages_are_heard() -> None:
    async def scenario() -> None:
        a, b = Host(1), Host(2)
        port = b.port
        b._listener.close()
        try:
            await a.start({2: [f"http://127.0.0.1:{port}"]})
            a.send(*(heartbeat(1, 2, number) for number in range(1000)))
            await a.until(lambda: a.unreachable == [2])
            b = Host(2, port=port)
            await b.start({})
            await b.until(lambda: len(b.received) == transport.MAX_WAITING_MESSAGES)
            assert b.received == [heartbeat(1, 2, number) for number in range(984, 1000)]
        finally:
            await asyncio.gather(a.stop(), b.stop())

    run(scenario())


def test_a_peer_that_reads_nothing_costs_bounded_memory_and_drops_the_newest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "MAX_BULK_BYTES", 4 << 20)
    monkeypatch.setattr(transport, "MAX_URGENT_MESSAGES", 100)

    async def scenario() -> None:
        gate = asyncio.Event()
        seen: list[Message] = []

        async def stalled(batches: AsyncIterator[bytes], _: object) -> bytes:
            await gate.wait()
            async for batch in batches:
                seen.extend(transport.codec.decode_batch(batch))
                b.arrived.set()
            return b""

        monkeypatch.setattr(PeerTransport, "receive", lambda self, batches, context: stalled(batches, context))
        async with hosts(1, 2) as (a, b):
            stream = a.transport._streams[2]  # type: ignore[union-attr]
            while not stream.connected:
                await asyncio.sleep(0.01)
            a.unreachable.clear()
            number = 0
            while not a.unreachable:
                a.send(append(1, 2, number, 256 << 10))
                number += 1
                assert stream._bulk_bytes <= (4 << 20) + (257 << 10)
                await asyncio.sleep(0)
            a.send(*(heartbeat(1, 2, beat) for beat in range(200)))
            assert len(stream._urgent) == 100
            kept = number - 1
            gate.set()
            await b.until(lambda: sum(isinstance(m, AppendEntries) for m in seen) == kept)
            heard = [m.prev_log_index for m in seen if isinstance(m, AppendEntries)]
            assert heard == list(range(kept))
            assert a.unreachable == [2]

    run(scenario())


@pytest.mark.parametrize(
    ("cluster_id", "believed_id"), [(CLUSTER + 1, 2), (CLUSTER, 3)], ids=["other cluster", "other member"]
)
def test_a_stranger_is_refused_and_both_sides_say_so_once(
    cluster_id: int, believed_id: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        stranger, b = Host(1, cluster_id=cluster_id), Host(2)
        try:
            await b.start({})
            await stranger.start({believed_id: [b.url]})
            # Several refusals, hence several attempts.
            while sum("FAILED_PRECONDITION" in record.getMessage() for record in caplog.records) < 3:
                stranger.send(heartbeat(1, believed_id))
                await asyncio.sleep(0.01)
            assert b.received == []
            assert stranger.unreachable
        finally:
            await asyncio.gather(stranger.stop(), b.stop())

    with caplog.at_level(logging.DEBUG, "raftkv.peer"):
        run(scenario())
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2, warnings
    assert any("refused messages of member 1 of cluster" in text for text in warnings)
    assert any("etcdserver: cluster ID mismatch" in text and "--initial-cluster-token" in text for text in warnings)


@pytest.mark.parametrize("batch", [b"\x0a\xff", b"not a batch"])
def test_garbage_ends_the_call_and_nothing_else(batch: bytes) -> None:
    async def scenario() -> None:
        async with hosts(1, 2) as (a, b), grpc.aio.insecure_channel(f"127.0.0.1:{b.port}") as channel:
            metadata = ((reception.CLUSTER_ID, f"{CLUSTER:x}"), (reception.FROM, "1"), (reception.TO, "2"))
            call = channel.stream_unary(transport.MESSAGES)(metadata=metadata)
            await call.write(batch)
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert b.transport.malformed == {1: 1}
            await connect(a, b)

    run(scenario())


@pytest.mark.parametrize(
    "metadata",
    [(), ((reception.CLUSTER_ID, "zz"),), ((reception.CLUSTER_ID, f"{CLUSTER:x}"), (reception.TO, "2"))],
)
def test_a_caller_that_does_not_name_itself_is_refused(metadata: tuple[tuple[str, str], ...]) -> None:
    async def scenario() -> None:
        async with hosts(1, 2) as (_, b), grpc.aio.insecure_channel(f"127.0.0.1:{b.port}") as channel:
            call = channel.stream_unary(transport.MESSAGES)(metadata=metadata)
            assert await call.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert await call.details() == "etcdserver: cluster ID mismatch"

    run(scenario())


def test_messages_in_anothers_name_are_dropped() -> None:
    async def scenario() -> None:
        async with hosts(1, 2) as (a, b):
            await connect(a, b)
            a.send(heartbeat(9, 2, 1), heartbeat(1, 2, 2))
            await b.until(lambda: bool(b.received))
            assert b.received == [heartbeat(1, 2, 2)]

    run(scenario())


def test_the_second_url_is_tried_when_the_first_is_dead() -> None:
    async def scenario() -> None:
        with socket.socket() as silent:
            # Bound, but nobody listens: refused at once.
            silent.bind(("127.0.0.1", 0))
            a, b = Host(1), Host(2)
            try:
                await b.start({})
                await a.start({2: [f"http://127.0.0.1:{silent.getsockname()[1]}", b.url]})
                await connect(a, b)
            finally:
                await asyncio.gather(a.stop(), b.stop())

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(transport, "CONNECT_SECONDS", 0.2)
        run(scenario())


def test_closing_ends_the_streams_of_others_while_the_port_is_still_served(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with hosts(1, 2) as (a, b):
            assert b.transport is not None
            await connect(a, b)
            a.unreachable.clear()
            await b.transport.close()
            await a.until(lambda: a.unreachable == [2])

    with caplog.at_level(logging.INFO, "raftkv.peer"):
        run(scenario())
    assert any(
        record.getMessage().endswith(": the member ended it, as it does when it stops") for record in caplog.records
    )


def test_members_come_and_go() -> None:
    async def scenario() -> None:
        async with hosts(1, 2) as (a, b):
            assert a.transport is not None
            await connect(a, b)
            c = Host(3)
            try:
                await c.start({})
                a.transport.update({1: [a.url], 3: [c.url]})
                a.send(heartbeat(1, 2, 1))
                await connect(a, c)
                assert b.received == []
            finally:
                await c.stop()

    run(scenario())


def test_the_connection_to_a_member_that_is_gone_is_closed() -> None:
    async def scenario() -> None:
        opened, closed = asyncio.Event(), asyncio.Event()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"\0\0\0\4\0\0\0\0\0")  # SETTINGS: the connection is in use from here on
            while await reader.read(1 << 16):
                opened.set()
            closed.set()
            writer.close()

        async with await asyncio.start_server(accept, "127.0.0.1", 0) as listener, hosts(1) as (a,):
            assert a.transport is not None
            url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
            a.transport.update({2: [url]})
            await opened.wait()
            while not a.transport.connected[2]:
                await asyncio.sleep(0)
            a.transport.update({})
            await closed.wait()

    run(scenario())


def test_messages_for_strangers_and_oneself_are_dropped() -> None:
    async def scenario() -> None:
        async with hosts(1, 2) as (a, b):
            a.send(heartbeat(1, 9), heartbeat(1, 1))
            await connect(a, b)
            assert a.received == []
            assert a.unreachable in ([], [2])

    run(scenario())
