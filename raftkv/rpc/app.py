"""The ASGI application: one HTTP request is one call.

A unary call costs no task, no timer of its own and three sends; less where the host lets it be taken at once
(`raftkv.rpc.prompt`). A call that streams has one more task, which reads the request and notices that the client went
away; then the handler is cancelled. It has none if its whole request is here and the host does that.

A unary handler is not told that its client went away, unless the host cancels the request's task (raftkv's does): most
are done before the news could arrive, and a proposal cannot be taken back.
"""

import asyncio
from collections import deque
from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

from raftkv.http.asgi import CERTIFICATE_USER, COUNTED, DIRECT, WHOLE, ASGIApp, Direct, Receive, Scope, Send, Taken
from raftkv.http.load import Load
from raftkv.rpc.answers import (
    HEADERS,
    NOTHING,
    OK,
    START,
    all_but_the_last,
    as_status,
    end,
    pass_on,
    send_response,
)
from raftkv.rpc.calls import Calls, Said
from raftkv.rpc.framing import PIECE_BYTES, PREFIX_BYTES, Answer, Deframer, Framed, Large, frame_answer, whole_message
from raftkv.rpc.held import Held, admit, hurried, too_many, too_much
from raftkv.rpc.interrupt import Deadlines, Disconnected, Interrupt, deadline_of
from raftkv.rpc.method import Context, Kind, Method
from raftkv.rpc.prompt import Prompt
from raftkv.rpc.requests import HELD_BYTES, Requests
from raftkv.status import Code, StatusError


class App:
    """Serves a table of methods by path; requests that are not gRPC go to `http`, if that is set."""

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        max_receive_bytes: int = 4 << 20,
        max_send_bytes: int = (1 << 31) - 1,
        said: Said | None = None,
        load: Load | None = None,
        urgent: Collection[str] = (),
    ) -> None:
        """Sizes are of one message, without its prefix and after decompression; `said` hears of every call.

        While `load` is as much as it may be, calls are refused, except those of the `urgent` paths; of these an eighth
        more may be open.
        """
        self._methods = dict(methods)
        self._services = {path.split("/")[1] for path in methods}
        self._max_receive_bytes = max_receive_bytes
        self._max_send_bytes = max_send_bytes
        self._said = said
        self._load = load or Load()
        self._urgent = frozenset(urgent)
        self.http: ASGIApp | None = None
        self._deadlines = Deadlines()
        self._streams: set[Interrupt] = set()
        self._stopping = False

    def stop_streams(self) -> None:
        """End every streaming call with UNAVAILABLE, and refuse new ones; unary calls go on. Safe to call twice.

        Streams such as watches last for ever: a server that drains would wait for them in vain. UNAVAILABLE is the
        status after which clients resume elsewhere.
        """
        self._stopping = True
        for interrupt in tuple(self._streams):
            interrupt(_stopping())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] == "websocket" and self.http is not None:
            await self._other(self.http, scope, receive, send)
            return
        if scope["type"] != "http":
            await _other_scope(scope, receive, send)
            return
        # Of a repeated header the last counts.
        headers: dict[bytes, bytes] = dict(scope["headers"])
        problem = self._not_grpc(scope, headers.get(b"content-type", b""))
        if problem is None:
            await self._call(scope, receive, send, headers)
        elif problem[0] == 404 and self.http is not None:
            await self._other(self.http, scope, receive, send)
        else:
            await _respond(send, *problem)

    def take(self, scope: Scope, request: Taken) -> bool:
        """Take a request in the turn that brought it, if it is a plain unary call (`raftkv.http.asgi.TakeAtOnce`)."""
        method = self._methods.get(scope["path"])
        if method is None or method.kind is not Kind.UNARY:
            return False
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if (
            self._not_grpc(scope, headers.get(b"content-type", b"")) is not None
            or headers.get(b"grpc-encoding", b"identity") != b"identity"
            or (message := whole_message(request.body, self._max_receive_bytes)) is None
            or self._load.bytes >= self._load.max_bytes
        ):
            return False
        if self._said is not None:
            self._said.count(headers, True)
        Prompt(method, request, self._max_send_bytes, self._load).begin(
            message, scope, headers.get(b"grpc-timeout"), self._deadlines
        )
        return True

    def _not_grpc(self, scope: Scope, content_type: bytes) -> tuple[int, bytes] | None:
        """Why a request is no gRPC call, as HTTP status and text."""
        if content_type == b"application/grpc" or _is_grpc(content_type):
            if scope["method"] != "POST":
                return 405, b"gRPC calls are POST requests\n"
            if "http.response.trailers" not in scope.get("extensions", ()):
                return 400, b"gRPC needs HTTP/2 and the header te: trailers\n"
            return None
        if scope["path"] not in self._methods:
            return 404, b"this port speaks gRPC\n"
        if scope["method"] != "POST":
            return 405, b"gRPC calls are POST requests\n"
        return 415, b'invalid gRPC request content-type "' + content_type + b'"\n'

    async def _other(self, http: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve what is no gRPC call; as long as it stays open for what is still to arrive, it counts."""
        if scope["type"] == "http" and _whole(scope):
            await http(scope, receive, send)
            return
        self._load.streams += 1
        try:
            # Other connections have one request at a time, and are bounded themselves.
            if scope.get("http_version") == "2":
                self._refuse_too_many(scope["path"])
        except StatusError:
            # Without a word, which might wait for a window of the client.
            await _respond(send, 429, b"")
        else:
            await http({**scope, COUNTED: True}, receive, send)
        finally:
            self._load.streams -= 1

    async def _call(self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]) -> None:
        path = scope["path"]
        method = self._methods.get(path)
        if method is None:
            await end(send, self._unknown(path), started=False)
            return
        direct: Direct | None = scope["extensions"].get(DIRECT)
        method.calls.started += 1
        if self._said is not None:
            self._said.count(headers, method.kind is Kind.UNARY)
        code = Code.CANCELED
        stays = method.counted and (method.kind is not Kind.UNARY or not _whole(scope))
        counted = stays and not scope.get(COUNTED)
        self._load.streams += counted
        try:
            encoding = headers.get(b"grpc-encoding", b"")
            if encoding and encoding not in (b"identity", b"gzip"):
                text = f'grpc: Decompressor is not installed for grpc-encoding "{encoding.decode("latin-1")}"'
                raise StatusError(Code.UNIMPLEMENTED, text)
            timeout = headers.get(b"grpc-timeout")
            deadline = None if timeout is None else deadline_of(timeout)
            context = Context(scope["headers"], scope.get("client"), deadline, scope.get(CERTIFICATE_USER, ""))
            if self._load.bytes >= self._load.max_bytes:
                self._refuse_unless_urgent(path)
            if stays:
                self._refuse_too_many(path)
            if method.kind is not Kind.UNARY:
                deframer = Deframer(encoding, method.max_receive_bytes or self._max_receive_bytes)
                code = await self._stream(method, direct, receive, send, deframer, context)
                return
            if direct is not None and not direct.request_ended:
                receive = hurried(receive)
            if deadline is None:
                response = await self._unary(method, receive, encoding, context)
            else:
                response = await self._unary_until(deadline, method, receive, encoding, context)
            code = Code.OK
            if direct is None or isinstance(response, Large) or not direct.answer(HEADERS, response, OK):
                await send_response(send, response, self._load)
        except StatusError as error:
            code = error.code
            await end(send, error, started=False)
        except Disconnected:
            pass
        finally:
            self._load.streams -= counted
            method.calls.handled[code] += 1

    def _refuse_unless_urgent(self, path: str) -> None:
        if path not in self._urgent:
            self._load.refused_calls += 1
            raise too_much()

    def _refuse_too_many(self, path: str) -> None:
        load = self._load
        if load.streams > load.max_streams + (max(1, load.max_streams >> 3) if path in self._urgent else 0):
            load.refused_calls += 1
            raise too_many()

    def _unknown(self, path: str) -> StatusError:
        service, slash, name = path.removeprefix("/").rpartition("/")
        if not slash:
            text = f'malformed method name: "{path}"'
        elif service in self._services:
            text = f"unknown method {name} for service {service}"
        else:
            text = f"unknown service {service}"
        return StatusError(Code.UNIMPLEMENTED, text)

    # Unary calls

    async def _unary(self, method: Method, receive: Receive, encoding: bytes, context: Context) -> bytes | Large:
        event = await receive()
        request = whole_message(event.get("body", b""), self._max_receive_bytes)
        if request is None:
            request = await self._pieces(event, receive, encoding)
        calls = method.calls
        calls.received += 1
        size = len(request)
        calls.received_bytes += size
        load = self._load
        load.bytes += size
        try:
            response = frame_answer(await method.handler(request, context), self._max_send_bytes)
        except StatusError:
            raise
        except Exception as error:
            raise as_status(error, method) from error
        finally:
            load.bytes -= size
        if isinstance(response, Large):
            admit(load, len(response))
        calls.sent += 1
        calls.sent_bytes += len(response) - PREFIX_BYTES
        return response

    async def _pieces(self, event: MutableMapping[str, Any], receive: Receive, encoding: bytes) -> bytes:
        """Read a request message that came in several pieces, compressed, or not at all."""
        deframer = Deframer(encoding, self._max_receive_bytes)
        messages: list[bytes] = []
        held = Held(self._load)
        try:
            while True:
                if event["type"] == "http.disconnect":
                    raise Disconnected
                body = event.get("body", b"")
                held.set(held.bytes + len(body))
                messages += deframer.feed(body)
                if not event.get("more_body", False):
                    break
                event = await receive()
        finally:
            held.set(0)
        deframer.finish()
        if len(messages) != 1:
            raise StatusError(Code.INTERNAL, f"grpc: a unary call has one request message, not {len(messages)}")
        return messages[0]

    async def _unary_until(
        self, deadline: float, method: Method, receive: Receive, encoding: bytes, context: Context
    ) -> bytes | Large:
        interrupt = Interrupt()
        self._deadlines.add(deadline, interrupt)
        try:
            return await self._unary(method, receive, encoding, context)
        except asyncio.CancelledError as cancelled:
            raise interrupt.claim() or cancelled from None
        finally:
            interrupt.disarm()

    # Streaming calls

    async def _stream(
        self,
        method: Method,
        direct: Direct | None,
        receive: Receive,
        send: Send,
        deframer: Deframer,
        context: Context,
    ) -> Code:
        if self._stopping:
            raise _stopping()
        interrupt = context.interrupt = Interrupt()
        if context.deadline is not None:
            self._deadlines.add(context.deadline, interrupt)
        load = self._load if method.counted else None
        requests = Requests(receive, deframer, interrupt, method.calls, direct, load)
        reader = None
        if direct is not None and direct.request_ended and direct.unread <= HELD_BYTES and not deframer.inflates:
            # A host that is so direct cancels this task when the client goes away: there is nothing to watch for.
            await requests.read_whole()
        else:
            reader = asyncio.get_running_loop().create_task(requests.read())
        response = _Response(send, self._max_send_bytes, method.calls, self._load)
        if direct is not None:
            context.push = _Push(direct, method.calls, response)
        self._streams.add(interrupt)
        error: Exception | None = None
        try:
            await response.give(method, requests, context)
        except asyncio.CancelledError as cancelled:
            error = interrupt.claim()
            if error is None:
                raise cancelled from None
        except (StatusError, Disconnected) as refused:
            error = refused
        finally:
            interrupt.disarm()
            self._streams.discard(interrupt)
            if reader is None:
                requests.close()
            else:
                reader.cancel()
        if isinstance(error, Disconnected):
            return Code.CANCELED
        code = error.code if isinstance(error, StatusError) else Code.OK
        try:
            await end(send, error, started=response.started)
        finally:
            # It knows this frame: together they would wait for the collector.
            error = None
        return code


class _Response:
    """The response of a streaming call, message by message."""

    def __init__(self, send: Send, max_bytes: int, calls: Calls, load: Load) -> None:
        self._send = send
        self._load = load
        self._max_bytes = max_bytes
        self._calls = calls
        self.started = False
        self.busy = False
        """Whether a message is half sent: nothing else may come between its pieces."""

    async def give(self, method: Method, requests: Requests, context: Context) -> None:
        """Run the handler and send what it answers."""
        try:
            if method.kind is Kind.CLIENT_STREAM:
                await self._message(await method.handler(requests, context))
                return
            request = requests if method.kind is Kind.BIDI else await requests.only()
            # Headers at once: a client may wait for them before it sends, and the first message may be late.
            await self._start()
            await pass_on(method.handler(request, context), self._message)
        except (StatusError, Disconnected):
            raise
        except Exception as error:
            raise as_status(error, method) from error

    async def _start(self) -> None:
        self.started = True
        try:
            await self._send(START)
            # Hosts keep headers until something of a body follows: they may have to say a status in the same block.
            await self._send(NOTHING)
        except OSError as error:
            raise Disconnected from error

    async def _message(self, message: Answer | Framed) -> None:
        body: bytes | Large
        if isinstance(message, Framed):
            body, count = message.data, message.count
            if len(body) > PIECE_BYTES:
                body = Large(deque([([message.data], len(body))]), len(body))
        else:
            body, count = frame_answer(message, self._max_bytes), 1
        size = len(body)
        if not self.started:
            await self._start()
        self.busy = True
        try:
            if isinstance(body, Large):
                admit(self._load, len(body))
                body = await all_but_the_last(self._send, body, self._load)
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
        except OSError as error:
            raise Disconnected from error
        finally:
            self.busy = False
        self._calls.sent += count
        self._calls.sent_bytes += size - count * PREFIX_BYTES


class _Push:
    """Answers past the handler's iterator."""

    __slots__ = ("_calls", "_response", "_room", "_write")

    def __init__(self, direct: Direct, calls: Calls, response: _Response) -> None:
        self._room = direct.room
        self._write = direct.write
        self._calls = calls
        self._response = response

    def room(self) -> int:
        """How many bytes would leave at once; none while the iterator's message is half sent."""
        return 0 if self._response.busy else self._room()

    def __call__(self, messages: Framed) -> None:
        data = messages.data
        self._write(data)
        self._calls.sent += messages.count
        self._calls.sent_bytes += len(data) - messages.count * PREFIX_BYTES


def _stopping() -> StatusError:
    return StatusError(Code.UNAVAILABLE, "the server is stopping")


def _is_grpc(content_type: bytes) -> bool:
    kind = content_type[:16].lower()
    return kind == b"application/grpc" and content_type[16:17] in (b"", b"+", b";", b" ")


def _whole(scope: Scope) -> bool:
    """Whether all of a request is here, if the host says so."""
    extensions = scope.get("extensions", {})
    direct: Direct | None = extensions.get(DIRECT)
    if direct is not None:
        return direct.request_ended
    return WHOLE in extensions and bool(extensions[WHOLE]())


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    if status == 405:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _other_scope(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close"})
