"""Questions between members: the frames by the h2 library, which keeps every rule; the rest by raftkv's own server."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from raftkv import errors
from raftkv.http import HttpServer, Tls, frames, listen
from raftkv.http.tls import DialTls
from raftkv.peer import PeerCalls, connection
from raftkv.peer import questions as questions_module
from raftkv.peer.asking import Asking
from raftkv.peer.dial import Dial
from raftkv.peer.questions import Questions
from raftkv.peer.reception import CLUSTER_ID, FROM, TO
from raftkv.rpc import App, Context, Method
from raftkv.status import StatusError
from tests.support.certificates import Authority
from tests.unit.http.memory import Transport

SECONDS = 90.0
METHOD = "/s/M"


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


class Peer:
    """A listener made of the h2 library, which answers when it is told to."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.url = ""
        self.connections = 0
        self.bodies: dict[int, bytearray] = {}
        self.ended: set[int] = set()
        self.reset: set[int] = set()
        self.headers: dict[int, dict[str, str]] = {}
        self.news = asyncio.Event()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.connections += 1
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        values = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: self.window}
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=values)
        self.h2.initiate_connection()
        self.flush()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for event in self.h2.receive_data(data):
                    self.take(event)
                self.flush()
                self.news.set()
        writer.close()

    def take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                self.headers[event.stream_id] = dict(event.headers)
                self.bodies[event.stream_id] = bytearray()
            case h2.events.DataReceived():
                self.bodies[event.stream_id] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self.ended.add(event.stream_id)
            case h2.events.StreamReset():
                self.reset.add(event.stream_id)

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.news.clear()
            await self.news.wait()

    async def answer(self, stream: int, message: bytes) -> None:
        self.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        rest = framed(message)
        while rest:
            size = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(rest))
            self.h2.send_data(stream, rest[:size], pad_length=3 if len(message) < 100 else None)
            rest = rest[size:]
            self.flush()
            if rest:
                await self.until(lambda: self.h2.local_flow_control_window(stream))
        self.h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)
        self.flush()


@contextlib.asynccontextmanager
async def served(window: int = 1 << 16) -> AsyncIterator[tuple[Asking, Peer]]:
    peer, questions = Peer(window), Asking(Dial())
    async with asyncio.timeout(SECONDS), await asyncio.start_server(peer.accept, "127.0.0.1", 0) as listener:
        peer.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        try:
            yield questions, peer
        finally:
            questions.close()


def asked(questions: Asking, peer: Peer, request: bytes, timeout: float = SECONDS) -> "asyncio.Task[bytes]":
    return asyncio.ensure_future(questions.ask(peer.url, METHOD, request, (("some-name", "x"),), timeout=timeout))


Run = Callable[[object], None]


def test_many_questions_share_a_connection_and_are_answered_in_any_order(run: Run) -> None:
    async def scenario() -> None:
        async with served() as (questions, peer):
            tasks = [asked(questions, peer, b"q%d" % number) for number in range(20)]
            await peer.until(lambda: len(peer.ended) == 20)
            wanted = {":method": "POST", ":path": METHOD, ":scheme": "http", "te": "trailers", "some-name": "x"}
            for stream in sorted(peer.ended, reverse=True):
                assert wanted.items() <= peer.headers[stream].items()
                await peer.answer(stream, b"to " + bytes(peer.bodies[stream][5:]))
            assert [await task for task in tasks] == [b"to q%d" % number for number in range(20)]
            assert peer.connections == 1

    run(scenario)


@pytest.mark.parametrize("window", [100, 1 << 16])
def test_large_questions_and_answers_keep_to_the_windows(window: int, run: Run) -> None:
    """The h2 library ends the connection when either is exceeded."""

    async def scenario() -> None:
        message = bytes(range(256)) * (40 if window == 100 else 4096)
        answer = bytes(10 << 20)
        async with served(window) as (questions, peer):
            tasks = [asked(questions, peer, message), asked(questions, peer, message[::-1])]
            await peer.until(lambda: len(peer.ended) == 2)
            assert sorted(peer.bodies.values()) == sorted((framed(message), framed(message[::-1])))
            for stream in sorted(peer.ended):
                await peer.answer(stream, answer)
            assert [await task for task in tasks] == [answer, answer]

    run(scenario)


def test_errors_are_told_apart(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with served() as (questions, peer):
            for stream, headers, error in (
                (1, [("grpc-status", "9"), ("grpc-message", "not%20you")], "FAILED_PRECONDITION"),
                (3, [("grpc-status", "77")], "UNKNOWN"),
            ):
                task = asked(questions, peer, b"x")
                await peer.until(lambda stream=stream: stream in peer.ended)
                peer.h2.send_headers(stream, [(":status", "200"), *headers], end_stream=True)
                peer.flush()
                with pytest.raises(StatusError) as status:
                    await task
                assert status.value.code.name == error
            for stream, headers, words in (
                (5, [(":status", "404")], "HTTP status 404"),
                (7, [(":status", "200"), ("grpc-status", "0")], "not one message"),
            ):
                task = asked(questions, peer, b"x")
                await peer.until(lambda stream=stream: stream in peer.ended)
                peer.h2.send_headers(stream, headers, end_stream=True)
                peer.flush()
                with pytest.raises(ConnectionError, match=words):
                    await task
            task = asked(questions, peer, b"x")
            await peer.until(lambda: 9 in peer.ended)
            peer.h2.reset_stream(9, 2)
            peer.flush()
            with pytest.raises(ConnectionError, match="reset with HTTP/2 error 2"):
                await task
            monkeypatch.setattr(connection, "MAX_ANSWER_BYTES", 100)
            task = asked(questions, peer, b"x")
            await peer.until(lambda: 11 in peer.ended)
            await peer.answer(11, bytes(200))
            with pytest.raises(ConnectionError, match="more than 100 bytes"):
                await task
            assert peer.connections == 1

    run(scenario)


def test_a_question_that_is_late_is_taken_back_and_others_go_on(run: Run) -> None:
    async def scenario() -> None:
        async with served() as (questions, peer):
            patient = asked(questions, peer, b"patient")
            with pytest.raises(ConnectionError, match=r"no answer within 0\.2 s"):
                await asked(questions, peer, b"late", 0.2)
            await peer.until(lambda: peer.reset == {3})
            assert peer.headers[3]["grpc-timeout"] == "200m"
            await peer.answer(1, b"yes")
            assert await patient == b"yes"

    run(scenario)


def test_what_ends_a_connection_ends_its_questions_and_the_next_has_a_new_one(run: Run) -> None:
    async def scenario() -> None:
        async with served() as (questions, peer):
            for lost in (
                lambda: peer.writer.transport.abort(),
                lambda: peer.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            ):
                peer.ended.clear()
                task = asked(questions, peer, b"x")
                await peer.until(lambda: peer.ended)
                lost()
                with pytest.raises(ConnectionError):
                    await task
            peer.ended.clear()
            tasks = [asked(questions, peer, b"before"), asked(questions, peer, b"after")]
            await peer.until(lambda: len(peer.ended) == 2)
            peer.h2.close_connection(last_stream_id=1)
            peer.flush()
            with pytest.raises(ConnectionError, match="refuses calls"):
                await tasks[1]
            peer.writer.transport.abort()
            with pytest.raises(ConnectionError, match="lost"):
                await tasks[0]
            assert peer.connections == 3
            task = asked(questions, peer, b"x")
            await peer.until(lambda: peer.connections == 4)
            questions.close()
            with pytest.raises(ConnectionError, match="closed here"):
                await task
            with pytest.raises(ConnectionError, match="closed here"):
                await asked(questions, peer, b"x")

    run(scenario)


def test_a_member_that_falls_silent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PING_SECONDS", 0.01)

    async def scenario() -> None:
        async with served() as (questions, peer):
            task = asked(questions, peer, b"x")
            for _ in range(3):
                peer.news.clear()
                await peer.news.wait()
            assert not task.done()
            monkeypatch.setattr(connection, "PONG_SECONDS", 0.01)
            peer.flush = lambda: None  # type: ignore[method-assign]
            with pytest.raises(ConnectionError, match="no sign of life"):
                await task

    asyncio.run(scenario())


def test_an_answer_that_takes_long_to_come_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with served(1 << 24) as (questions, peer):
            task = asked(questions, peer, b"x")
            await peer.until(lambda: peer.ended)
            (line,) = questions._made
            monkeypatch.setattr(connection, "PONG_SECONDS", 3600.0)
            line._ping()
            for _ in range(3):
                # The time has come again and again, and no answer to the ping.
                line.data_received(b"")
                line._judge()
            assert not task.done()
            line._judge()
            with pytest.raises(ConnectionError, match="no sign of life"):
                await task

    asyncio.run(scenario())


def test_a_connection_without_numbers_is_replaced_and_ends_what_it_began(
    run: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions_module, "LAST_STREAM", 5)

    async def scenario() -> None:
        async with served() as (questions, peer):
            tasks = []
            for stream in (1, 3, 5):
                tasks.append(asked(questions, peer, b"x"))
                await peer.until(lambda wanted=stream: wanted in peer.ended)
            first, first_writer = peer.h2, peer.writer
            again = asked(questions, peer, b"again")
            await peer.until(lambda: peer.connections == 2 and peer.bodies[1] == framed(b"again"))
            await peer.answer(1, b"new")
            assert await again == b"new"
            peer.h2, peer.writer = first, first_writer
            for stream, task in zip((1, 3), tasks, strict=False):
                await peer.answer(stream, b"%d" % stream)
                assert await task == b"%d" % stream
            questions.close()
            with pytest.raises(ConnectionError, match="closed here"):
                await tasks[2]

    run(scenario)


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_a_name_that_is_none_is_nobody(run: Callable[[object], None], host: str) -> None:
    async def scenario() -> None:
        questions = Asking(Dial())
        with pytest.raises(ConnectionError, match="no name of a host"):
            await questions.ask(f"http://{host}:1", METHOD, b"", timeout=SECONDS)
        questions.close()

    run(scenario)


# With raftkv's own server


class World:
    """An authority, a member's port that says how it was reached, and how it is dialled."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        certificate, key = self.authority.issue("server")
        self.listens = Tls(certificate=certificate, key=key, client_ca=self.authority.file)
        certificate, key = self.authority.issue("member")
        self.dials = DialTls(certificate=certificate, key=key, ca=self.authority.file)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@contextlib.asynccontextmanager
async def member(tls: Tls | None) -> AsyncIterator[str]:
    async def answer(request: bytes, context: Context) -> bytes:
        if request == b"lead":
            raise errors.NotLeader
        return request + b" " + " ".join(context.metadata[name] for name in (CLUSTER_ID, FROM, TO)).encode()

    server = HttpServer(App({METHOD: Method.unary(answer)}), listen("127.0.0.1", 0), grace_seconds=1.0, tls=tls)
    await server.start()
    try:
        async with asyncio.timeout(SECONDS):
            yield f"{'https' if tls else 'http'}://{server.address}"
    finally:
        await server.stop()


async def outcome(url: str, tls: DialTls) -> str:
    calls = PeerCalls(0xC, 1, lambda: {2: [url]}, Dial(tls))
    try:
        return (await calls.call(2, METHOD, b"x", SECONDS)).decode()
    except ConnectionError as error:
        return f"refused: {error}"
    finally:
        await calls.close()


async def reached(listens: Tls, dials: DialTls) -> bool:
    async with member(listens) as url:
        return await outcome(url, dials) == "x c 1 2"


def test_questions_keep_to_the_versions_and_ciphers_of_the_flags(world: World, run: Run) -> None:
    old, new = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    one, other = ("ECDHE-ECDSA-AES128-GCM-SHA256",), ("ECDHE-ECDSA-AES256-GCM-SHA384",)

    async def scenario() -> None:
        assert await reached(world.listens, world.dials)
        assert await reached(replace(world.listens, maximum=old), replace(world.dials, maximum=old))
        assert not await reached(replace(world.listens, maximum=old), replace(world.dials, minimum=new))
        assert not await reached(replace(world.listens, minimum=new), replace(world.dials, maximum=old))
        listens = replace(world.listens, maximum=old, ciphers=one)
        assert await reached(listens, replace(world.dials, ciphers=one))
        assert not await reached(listens, replace(world.dials, ciphers=other))

    run(scenario)


def test_who_vouches_for_a_member_is_verified_unless_it_is_not_to_be(world: World, run: Run, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")

    async def scenario() -> None:
        assert not await reached(world.listens, replace(world.dials, ca=other.file))
        assert await reached(world.listens, replace(world.dials, ca=other.file, verify=False))
        assert not await reached(world.listens, replace(world.dials, certificate=None, key=None))
        elsewhere, key = world.authority.issue("far", ["far.example"])
        assert not await reached(replace(world.listens, certificate=elsewhere, key=key), world.dials)

    run(scenario)


def test_files_that_are_exchanged_count_for_the_next_connection(world: World, run: Run, tmp_path: Path) -> None:
    """The certificate that is shown, and whom this side believes."""
    dialled, listening = tmp_path / "dialled", tmp_path / "listening"
    ours, theirs = Authority(dialled), Authority(listening)
    shown, key = ours.issue("member")
    certificate, server_key = theirs.issue("server")
    listens = Tls(certificate=certificate, key=server_key, client_ca=theirs.file)
    dials = DialTls(certificate=shown, key=key, ca=ours.file)

    async def scenario() -> None:
        async with member(listens) as url:
            assert "refused" in await outcome(url, dials), "neither knows the other"
            dials.ca.write_bytes(theirs.file.read_bytes())  # type: ignore[union-attr]
            assert "refused" in await outcome(url, dials), "it is not believed yet"
            for old, new in zip((shown, key), theirs.issue("member"), strict=True):
                old.write_bytes(new.read_bytes())
            assert await outcome(url, dials) == "x c 1 2"
            key.write_text("nonsense")
            assert "cannot use the TLS files" in await outcome(url, dials)

    run(scenario)


def test_a_member_that_does_not_lead_says_so_and_the_next_url_is_tried_after_a_failure(run: Run) -> None:
    async def scenario() -> None:
        async with member(None) as url:
            with contextlib.closing(listen("127.0.0.1", 0)) as taken:
                nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
            calls = PeerCalls(0xC, 1, lambda: {2: [nobody, url]})
            with pytest.raises(ConnectionError, match=f"member 2 at {nobody}"):
                await calls.call(2, METHOD, b"x", SECONDS)
            assert await calls.call(2, METHOD, b"x", SECONDS) == b"x c 1 2"
            with pytest.raises(errors.NotLeader):
                await calls.call(2, METHOD, b"lead", SECONDS)
            with pytest.raises(ConnectionError, match="UNIMPLEMENTED"):
                await calls.call(2, "/s/Other", b"x", SECONDS)
            with pytest.raises(ConnectionError, match="not known"):
                await calls.call(3, METHOD, b"x", SECONDS)
            await calls.close()

    run(scenario)


def test_a_reset_of_a_question_that_is_half_sent_is_not_answered_with_one() -> None:
    """RFC 9113, 5.4.2."""

    async def scenario() -> None:
        line, transport = Questions("x"), Transport()
        transport.protocol = line
        line.connection_made(transport)
        line.data_received(frames.settings([]))
        asked = asyncio.create_task(line.ask("/a", bytes(1 << 20), ()))
        await asyncio.sleep(0)
        sent = len(transport.written)
        assert sent > 1 << 15
        line.data_received(frames.number(frames.RST_STREAM, 1, 8))
        with pytest.raises(ConnectionError, match="reset"):
            await asked
        assert len(transport.written) == sent
        line.close()

    asyncio.run(scenario())
