"""HTTP/1.1: one request after the other, and what clients do wrong."""

import asyncio
import re
from collections.abc import Awaitable, Callable

import pytest

from raftkv.http import http1
from raftkv.http.asgi import ASGIApp, Receive, Scope, Send
from raftkv.http.http1 import Http1
from tests.unit.http.memory import App, Transport, plain, read_all, turns, wait
from tests.unit.http.test_connection import broken, broken_later, run, silent

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Client:
    """Speaks bytes to an `Http1`."""

    def __init__(self, app: ASGIApp) -> None:
        self.transport = Transport()
        self.forgotten = 0
        self.connection = Http1(app, lambda socket: None, self._forget)
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)

    def _forget(self, connection: object) -> None:
        self.forgotten += 1

    async def ask(self, data: bytes) -> bytes:
        """Send, and what came back after some turns of the loop."""
        self.connection.data_received(data)
        await turns(10)
        answer = bytes(self.transport.written)
        self.transport.written.clear()
        return answer


def post(body: bytes, extra: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_requests_on_one_connection_are_answered_in_turn() -> None:
    async def scenario() -> None:
        app = App(read_all)
        client = Client(app)
        answer = await client.ask(post(b"abc"))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), "h2load counts no status that has no phrase"
        assert answer.endswith(b"1\r\n3\r\n0\r\n\r\n")
        answers = await client.ask(post(b"a") + GET + post(b"ab"))
        assert answers.count(b"HTTP/1.1 200") == 3
        assert re.findall(rb"\r\n\r\n1\r\n(\d)\r\n0\r\n\r\n", answers) == [b"1", b"0", b"2"]
        assert not client.transport.ended

    run(scenario)


def test_a_chunked_request_may_come_byte_by_byte() -> None:
    async def scenario() -> None:
        client = Client(App(read_all))
        request = (
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
        )
        for byte in request[:-1]:
            client.connection.data_received(bytes([byte]))
        await turns()
        assert client.transport.written == b""
        assert b"\r\n\r\n1\r\n5\r\n0\r\n\r\n" in await client.ask(request[-1:])

    run(scenario)


MALFORMED = {
    "no HTTP": b"hello\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "another protocol": b"GET / FTP/1.1\r\nHost: x\r\n\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "a negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n",
    "a length in words": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x3\r\n\r\n",
    "a target that is no URL": b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target that is an authority": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a relative target": b"GET ../x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a nul": b"GET / HTTP/1.1\r\nHost: x\r\nx: a\0b\r\n\r\n",
    "a WebSocket asked for by HTTP/1.0": (
        b"GET /v3/watch HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ),
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_a_400(name: str) -> None:
    async def scenario() -> None:
        app = App()
        client = Client(app)
        answer = await client.ask(MALFORMED[name] + GET)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 505 ")), answer
        assert answer.count(b"HTTP/1.1 ") == 1
        assert client.transport.ended
        assert app.requests == []

    run(scenario)


@pytest.mark.parametrize("body", [b"zz\r\n", b"3\r\nabcd\r\n", b"-1\r\n", b"fffffffffffffffffffffff\r\n"])
def test_a_malformed_chunk_ends_its_request(body: bytes) -> None:
    async def scenario() -> None:
        app = App(read_all)
        client = Client(app)
        for method in (b"POST", b"HEAD"):
            client = Client(app)
            head = method + b" / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            assert await client.ask(head) == b""
            assert (await client.ask(body)).startswith(b"HTTP/1.1 400 ")
            assert client.transport.ended
        assert app.ended == 2

    run(scenario)


def test_headers_without_end_are_refused() -> None:
    async def scenario() -> None:
        client = Client(App())
        await client.ask(b"GET / HTTP/1.1\r\nHost: x\r\n")
        answer = b""
        for number in range(10_000):
            answer = await client.ask(b"x-%d: " % number + b"y" * 100 + b"\r\n")
            if answer:
                break
        assert answer.startswith(b"HTTP/1.1 431 ")

    run(scenario)


def test_a_head_that_comes_slowly_is_refused_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "HEAD_SECONDS", 0.05)

    async def scenario() -> None:
        app = App()
        slow, quick = Client(app), Client(app)
        slow.connection.data_received(GET[:9])
        for byte in GET:
            quick.connection.data_received(bytes([byte]))
        while not slow.transport.ended:
            slow.connection.data_received(b"x")
            await asyncio.sleep(0.01)
        assert slow.transport.written.startswith(b"HTTP/1.1 408 ")
        assert quick.transport.written.startswith(b"HTTP/1.1 200 ")
        assert not quick.transport.ended, "between two requests there is no hurry"

    run(scenario)


@pytest.mark.parametrize("answer", [silent, broken])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_an_application_that_fails_before_its_answer_is_a_500(
    answer: Callable[..., Awaitable[None]], method: bytes
) -> None:
    async def scenario() -> None:
        found = await Client(App(answer)).ask(GET.replace(b"GET", method))
        assert found.startswith(b"HTTP/1.1 500 ")
        assert found.endswith(b"\r\n\r\n") == (method == b"HEAD")

    run(scenario)


def test_an_application_that_fails_amid_its_answer_cuts_it_off() -> None:
    async def scenario() -> None:
        client = Client(App(broken_later))
        found = await client.ask(GET)
        assert found.startswith(b"HTTP/1.1 200 ")
        assert not found.endswith(b"0\r\n\r\n")
        assert client.transport.ended

    run(scenario)


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
def test_answers_that_have_no_body(method: bytes, status: int) -> None:
    async def scenario() -> None:
        client = Client(App(plain(b"body", status)))
        for _ in range(2):
            found = await client.ask(GET.replace(b"GET", method))
            assert found.startswith(b"HTTP/1.1 %d " % status)
            assert found.endswith(b"\r\n\r\n")
            assert b"body" not in found

    run(scenario)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [(b"http://other/a%20b?q=1", "/a b", b"q=1"), (b"http://other", "/", b""), (b"/x?", "/x", b""), (b"*", "*", b"")],
)
def test_forms_of_a_target(target: bytes, path: str, query: bytes) -> None:
    async def scenario() -> None:
        app = App()
        await Client(app).ask(GET.replace(b" / ", b" " + target + b" "))
        assert (app.requests[0]["path"], app.requests[0]["query_string"]) == (path, query)

    run(scenario)


def test_a_client_is_told_to_go_on_when_its_body_is_wanted() -> None:
    async def scenario() -> None:
        client = Client(App(read_all))
        head, body = post(b"abc", b"Expect: 100-continue\r\n").split(b"\r\n\r\n")
        assert await client.ask(head + b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await client.ask(body)).startswith(b"HTTP/1.1 200 ")
        client = Client(App())
        assert b"100 Continue" not in await client.ask(head + b"\r\n\r\n")
        assert client.transport.ended, "the body was never asked for, so what follows may be one, or a request"

    run(scenario)


def test_a_body_that_nobody_reads_holds_its_client() -> None:
    async def scenario() -> None:
        release = asyncio.Event()

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            await release.wait()
            await read_all(scope, receive, send)

        client = Client(App(late))
        client.connection.data_received(post(bytes(20 << 20))[:200])
        sent = 200 - (len(post(bytes(20 << 20))) - (20 << 20))
        while client.transport.reading:
            client.connection.data_received(bytes(1 << 16))
            sent += 1 << 16
        assert sent < 5 << 20
        release.set()
        while sent < 20 << 20:
            await turns()
            assert client.transport.reading
            piece = min(1 << 16, (20 << 20) - sent)
            client.connection.data_received(bytes(piece))
            sent += piece
        assert b"\r\n20971520\r\n" in await client.ask(b"")

    run(scenario)


def test_requests_that_come_before_their_turn_hold_their_client() -> None:
    async def scenario() -> None:
        release = asyncio.Event()

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            await release.wait()
            await plain(b"ok")(scope, receive, send)

        client = Client(App(late))
        sent = 0
        while client.transport.reading and sent < 1 << 20:
            client.connection.data_received(GET * 1000)
            sent += len(GET) * 1000
        assert sent < 1 << 19
        release.set()
        while not client.transport.reading:
            await turns()
        assert client.transport.written.count(b"HTTP/1.1 200") > 100

    run(scenario)


def test_one_client_has_a_bounded_part_of_a_turn() -> None:
    async def scenario() -> None:
        pieces = 0

        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal pieces
            while (event := await receive())["more_body"]:
                pieces = max(pieces, len(event["body"]))
            await plain(b"ok")(scope, receive, send)

        client = Client(App(counting))
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.connection.data_received(head + b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n")
        assert not client.transport.reading
        while not client.transport.written:
            await turns(1)
        assert pieces <= 2 * http1._TURN_EVENTS
        assert client.transport.reading

    run(scenario)


def test_a_client_that_leaves_ends_its_request() -> None:
    async def scenario() -> None:
        app = App(wait)
        client = Client(app)
        await client.ask(GET)
        client.transport.abort()
        await turns()
        assert (app.ended, client.forgotten) == (1, 1)

    run(scenario)


def test_a_connection_that_leaves_answers_first() -> None:
    async def scenario() -> None:
        release = asyncio.Event()

        async def late(scope: Scope, receive: Receive, send: Send) -> None:
            await release.wait()
            await plain(b"ok")(scope, receive, send)

        client, idle = Client(App(late)), Client(App())
        await client.ask(GET + GET)
        client.connection.leave()
        idle.connection.leave()
        assert (client.transport.ended, idle.transport.ended) == (False, True)
        release.set()
        assert (await client.ask(b"")).count(b"HTTP/1.1 200") == 1
        assert client.transport.ended

    run(scenario)
