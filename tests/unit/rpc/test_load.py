"""How much may be in flight for all clients together, and how long a request may take to arrive; over real sockets."""

import asyncio
import contextlib
import gzip
import random
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from h2.settings import SettingCodes

from raftkv.http import HttpServer, Load, listen
from raftkv.rpc import App, Context, Framed, Gathered, Later, Method, answers
from raftkv.rpc.calls import Calls
from raftkv.rpc.framing import Deframer
from raftkv.rpc.held import BODY_SECONDS, admit
from raftkv.rpc.requests import Requests
from raftkv.status import Code, StatusError
from tests.support import virtual
from tests.unit.rpc.service import Service
from tests.unit.rpc.wire import WAIT_SECONDS, Answer, Wire, connect, message

SLOW = "/test.Service/Slow"
URGENT = "/test.Service/Urgent"
BLOB = "/test.Service/Blob"
MANY = "/test.Service/Many"
LATER = "/test.Service/Later"
FIRST = "/test.Service/First"
TRUSTED = "/test.Service/Trusted"
SOMETHING = bytes(range(256)) * 4
TOO_MANY = (Code.RESOURCE_EXHAUSTED, "raftkv: too many calls are open")
TOO_MUCH = (Code.RESOURCE_EXHAUSTED, "raftkv: too many bytes of requests and answers are in flight")


class World:
    """A server whose load is the test's."""

    def __init__(self, max_bytes: int) -> None:
        self.load = Load(max_bytes)
        self.release = asyncio.Event()
        self.all: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """What all calls of `later` wait for."""
        self.most = 0
        """The most that was in flight when one of them was answered."""
        self.running = 0
        service = Service()
        methods = {
            SLOW: Method.unary(self.slow),
            URGENT: Method.unary(service.echo),
            BLOB: Method.unary(service.blob),
            MANY: Method.unary(self.many),
            LATER: Method.unary(self.later),
            "/test.Service/Total": Method.client_stream(service.total),
            FIRST: Method.server_stream(self.first),
            TRUSTED: Method.client_stream(service.total, counted=False),
        }
        self.app = App(methods, load=self.load, urgent=(URGENT,))

    async def slow(self, request: bytes, context: Context) -> bytes:
        self.running += 1
        await self.release.wait()
        self.running -= 1
        return b"done"

    async def first(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        """Take one request, whatever else there is, and wait."""
        self.running += 1
        await self.release.wait()
        yield b"done"

    def later(self, request: bytes, context: Context) -> Later:
        self.running += 1

        def make() -> bytes:
            self.most = max(self.most, self.load.bytes)
            return b"x" * int(request)

        return Later(self.all, make)

    async def many(self, request: bytes, context: Context) -> Gathered:
        """A large answer whose pieces are there already, as those of a range are."""
        answer = Gathered()
        for _ in range(int(request)):
            await asyncio.sleep(0)
            answer.add([SOMETHING] * 100)
        return answer

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def serving(max_bytes: int, **settings: int) -> AsyncIterator[tuple[World, Wire]]:
    world = World(max_bytes)
    server = HttpServer(world.app, listen("127.0.0.1", 0), grace_seconds=1.0, load=world.load)
    await server.start()
    try:
        async with connect(server.address, {SettingCodes[name]: value for name, value in settings.items()}) as wire:
            yield world, wire
        await world.until(lambda: not world.load.connections)
        assert world.load.bytes == 0, "what is over is not in flight"
    finally:
        await server.stop()


async def at_once(wire: Wire, path: str, body: bytes, *extra: tuple[str, str]) -> Answer:
    """A call whose headers and body arrive in one piece."""
    return await wire.end_of(await wire.open(path, [*extra], body=body, end=True))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_calls_are_refused_at_once_while_too_much_is_in_flight_and_served_afterwards() -> None:
    async def scenario() -> None:
        async with serving(1000) as (world, wire):
            slow = [await wire.open(SLOW) for _ in range(2)]
            for stream in slow:
                await wire.data(stream, message(b"x" * 600), end=True)
            await world.until(lambda: world.running == 2)
            refused = await wire.call(SLOW, message(b"x"))
            assert refused.status == TOO_MUCH
            assert (await at_once(wire, SLOW, message(b"x"))).status == TOO_MUCH
            assert world.running == 2, "neither was begun"
            assert (await at_once(wire, URGENT, message(b"x"))).status == (0, "")
            assert (await wire.call(URGENT, message(b"x"))).status == (0, ""), "what is urgent is"
            assert world.load.refused_calls == 2
            world.release.set()
            for stream in slow:
                assert (await wire.end_of(stream)).messages == [b"done"]
            assert (await wire.call(SLOW, message(b"x" * 600))).messages == [b"done"]

    run(scenario)


@pytest.mark.parametrize(("most", "above"), [(16, 2), (4, 1)])
def test_calls_that_stay_open_are_bounded_and_those_that_matter_have_room_above(most: int, above: int) -> None:
    """A stream that says nothing, and a request that does not end, hold memory before anybody has said who they are."""

    async def scenario() -> None:
        async with serving(1 << 30) as (world, wire):
            world.load.max_streams = most
            total = "/test.Service/Total"
            idle = [await wire.open(total if number % 2 else SLOW) for number in range(most)]
            await world.until(lambda: world.load.streams == most)
            assert (await wire.call(total, message(b"x"))).status == TOO_MANY
            assert (await at_once(wire, BLOB, message(b"1"))).status == (0, ""), (
                "a call that is here as a whole is served"
            )
            packed = gzip.compress(b"1")
            packed = b"\1" + len(packed).to_bytes(4, "big") + packed
            assert (await at_once(wire, BLOB, packed, ("grpc-encoding", "gzip"))).messages == [b"x"], "packed or not"
            urgent = [await wire.open(URGENT) for _ in range(above)]
            await world.until(lambda: world.load.streams == most + above)
            assert (await wire.end_of(await wire.open(URGENT))).status == TOO_MANY
            assert world.load.refused_calls == 2
            for stream in (*idle, *urgent):
                await wire.reset(stream)
            await world.until(lambda: world.load.streams == 0)
            assert (await wire.call(total, message(b"x"))).status == (0, "")

    run(scenario)


def test_what_has_arrived_of_a_request_is_in_flight() -> None:
    async def scenario() -> None:
        async with serving(100_000) as (world, wire):
            whole = message(b"x" * 90_000)
            for path in (SLOW, "/test.Service/Total"):
                half = await wire.open(path)
                await wire.data(half, whole[:80_000])
                await world.until(lambda: world.load.bytes == 80_000)
                other = await wire.open(path)
                await wire.data(other, whole[:40_000])
                assert (await wire.end_of(other)).status == TOO_MUCH
                await wire.reset(half)
                await world.until(lambda: world.load.bytes == 0)

    run(scenario)


def test_what_members_send_does_not_wait_for_what_strangers_do() -> None:
    """Requests of a method that reads none but theirs do not count."""

    async def scenario() -> None:
        async with serving(1000) as (world, wire):
            stream = await wire.open(TRUSTED)
            await wire.data(stream, message(b"x" * 5000)[:4000])
            await wire.until(lambda: wire.room(stream) > 0)
            slow = await wire.open(SLOW)
            await wire.data(slow, message(b"x" * 900), end=True)
            await world.until(lambda: world.running == 1)
            assert world.load.bytes == 900
            await wire.data(stream, message(b"x" * 5000)[4000:], end=True)
            assert (await wire.end_of(stream)).status == (0, "")
            world.release.set()
            await wire.end_of(slow)

    run(scenario)


def test_streams_of_members_have_a_place_whatever_strangers_hold_open() -> None:
    async def scenario() -> None:
        async with serving(1000) as (world, wire):
            world.load.max_streams = 8
            held = [await wire.open(URGENT) for _ in range(9)]
            await world.until(lambda: world.load.streams == 9)
            assert (await wire.end_of(await wire.open(URGENT))).status == TOO_MANY
            stream = await wire.open(TRUSTED)
            await wire.data(stream, message(b"12345"), end=True)
            assert (await wire.end_of(stream)).messages == [b"5"]
            for one in held:
                await wire.reset(one)

    run(scenario)


def test_requests_of_a_stream_that_wait_count_also_when_all_of_it_came_in_one_piece() -> None:
    async def scenario() -> None:
        async with serving(1 << 20) as (world, wire):
            plain = [await wire.open(FIRST, body=message(b"x" * 1500) * 10, end=True) for _ in range(2)]
            await world.until(lambda: world.running == 2)
            assert world.load.bytes == 2 * 9 * 1500
            body = b"".join(message(gzip.compress(bytes(30_000)), 1) for _ in range(10))
            small = await wire.open(FIRST, [("grpc-encoding", "gzip")], body=body, end=True)
            await world.until(lambda: world.load.bytes >= 2 * 9 * 1500 + 9 * 30_000)
            world.release.set()
            for stream in (*plain, small):
                assert (await wire.end_of(stream)).messages == [b"done"]
            assert world.load.bytes == 0

    run(scenario)


def test_a_stream_whose_messages_are_cut_anywhere_is_no_slow_message() -> None:
    """What is read may always end within a message, for hours."""

    async def scenario() -> None:
        body = message(b"x" * 10)
        events = [body[:7], *[body[7:] + body[:7]] * 100, body[7:]]

        async def receive() -> dict[str, object]:
            await asyncio.sleep(BODY_SECONDS * 0.9)
            if not events:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": events.pop(0), "more_body": bool(events)}

        requests = Requests(receive, Deframer(b"", 100), lambda error: None, Calls())
        reader = asyncio.create_task(requests.read())
        assert [one async for one in requests] == [b"x" * 10] * 101
        await reader

    virtual.run(scenario())


def test_a_request_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that never begins, and a message on a stream; but a stream may be idle between two messages."""
    monkeypatch.setattr("raftkv.rpc.held.BODY_SECONDS", 0.2)
    monkeypatch.setattr("raftkv.rpc.requests.BODY_SECONDS", 0.2)

    async def scenario() -> None:
        async with serving(1 << 20) as (_, wire):
            idle = await wire.open("/test.Service/Total")
            await wire.data(idle, message(b"12345"))
            for path, begun in ((SLOW, b""), (SLOW, message(b"1234")[:-1]), ("/test.Service/Total", message(b"1")[:3])):
                slow = await wire.open(path)
                await wire.data(slow, begun)
                code, text = (await wire.end_of(slow)).status
                assert (code, "was not complete" in text) == (Code.DEADLINE_EXCEEDED, True)
            await wire.data(idle, message(b"678"), end=True)
            assert (await wire.end_of(idle)).messages == [b"8"]

    run(scenario)


def test_large_answers_that_nobody_takes_are_bounded_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with serving(3 << 20, INITIAL_WINDOW_SIZE=0) as (world, wire):
            taken = [await wire.open(BLOB) for _ in range(4)]
            for stream in taken[:2]:
                await wire.data(stream, message(b"1000000"), end=True)
            await world.until(lambda: world.load.bytes > 2_000_000)
            await wire.data(taken[2], message(b"1000000"), end=True)
            assert (await wire.end_of(taken[2])).status == TOO_MUCH
            wire.h2.increment_flow_control_window(2_000_000, taken[0])
            wire.h2.increment_flow_control_window(2_000_000)
            await wire.flush()
            assert len((await wire.end_of(taken[0])).messages[0]) == 1_000_000
            monkeypatch.setattr(answers, "TAKE_SECONDS", 0.2)
            await wire.data(taken[3], message(b"1000000"), end=True)
            assert (await wire.end_of(taken[3])).reset is not None
            # Of this one only the last piece has to wait.
            assert (await at_once(wire, BLOB, message(b"300000"))).reset is not None
            await wire.reset(taken[1])

    run(scenario)


def test_answers_that_become_ready_together_are_bounded_together() -> None:
    """Reads that one round of heartbeats confirms are answered in one turn: none may find the room of another."""

    async def scenario() -> None:
        async with serving(3 << 20, INITIAL_WINDOW_SIZE=0) as (world, wire):
            streams = [await wire.open(LATER) for _ in range(20)]
            for stream in streams:
                await wire.data(stream, message(b"1000000"), end=True)
            await world.until(lambda: world.running == len(streams))
            world.all.set_result(None)
            await wire.until(lambda: sum(wire.answers[stream].ended for stream in streams) >= 16)
            assert world.most <= 3 << 20
            for stream in streams:
                if not wire.answers[stream].ended:
                    await wire.reset(stream)

    run(scenario)


def test_a_large_answer_costs_no_second_copy_while_somebody_reads_it_slowly() -> None:
    """What it is made of is there anyway. All of it counts, and whoever leaves half-way gives all of it back."""

    async def scenario() -> None:
        async with serving(1 << 30, INITIAL_WINDOW_SIZE=100_000) as (world, wire):
            tracemalloc.start()
            try:
                stream = await wire.open(MANY)
                await wire.data(stream, message(b"500"), end=True)
                await world.until(lambda: world.load.bytes > 50_000_000)
                await wire.until(lambda: len(wire.answers[stream].body) > 60_000)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < 5_000_000, "some pieces of it, and a list of the rest"
            await wire.reset(stream)
            await world.until(lambda: not world.load.bytes)

    run(scenario)


@pytest.mark.parametrize("window", [1, 3000, 65_535, 1 << 20])
def test_a_large_answer_in_pieces_arrives_byte_for_byte_whatever_the_window(window: int) -> None:
    async def scenario() -> None:
        async with serving(1 << 30, INITIAL_WINDOW_SIZE=window) as (_, wire):
            wire.acknowledge = False
            stream = await wire.open(MANY)
            await wire.data(stream, message(b"10"), end=True)
            answer = wire.answers[stream]
            await wire.until(lambda: len(answer.body) >= min(window, 65_535))
            rng = random.Random(window)
            while not answer.ended:
                step = rng.choice((1, 5000, 70_000, 300_000))
                wire.h2.increment_flow_control_window(step)
                wire.h2.increment_flow_control_window(step, stream)
                await wire.flush()
                await wire.ping()
            assert answer.messages == [SOMETHING * 1000]

    run(scenario)


def test_an_answer_of_any_size_passes_while_little_else_is_in_flight() -> None:
    load = Load(1000)
    load.bytes = 125
    admit(load, 1 << 40)
    load.bytes = 126
    admit(load, 874)
    with pytest.raises(StatusError):
        admit(load, 875)


def test_a_call_that_is_thrown_away_with_its_loop_says_nothing() -> None:
    async def forever() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(0)

    async def give(message: bytes | Framed) -> None:
        given.append(message)

    given: list[bytes | Framed] = []
    call = answers.pass_on(forever(), give)
    call.send(None)
    call.close()
    assert given == [b"one"]
