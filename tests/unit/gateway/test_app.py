"""The gateway in front of an RPC application with handlers of every kind, event by event."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from raftkv import errors
from raftkv.gateway import Gateway
from raftkv.gateway import app as app_module
from raftkv.http import Load
from raftkv.pb import kv_pb2, rpc_pb2
from raftkv.rpc import App, Context, Method
from raftkv.status import Code, StatusError

LIMIT = 1000


class Service:
    """Handlers that answer what they were asked; `ended` is set when a watch was ended from outside."""

    limit = LIMIT

    def __init__(self) -> None:
        self.context: Context | None = None
        self.ended = asyncio.Event()

    async def range(self, request: bytes, context: Context) -> bytes:
        self.context = context
        wanted = rpc_pb2.RangeRequest.FromString(request)
        if wanted.key == b"refuse":
            raise StatusError(Code(wanted.limit), "100 % nö\n")
        if wanted.key == b"wait":
            await asyncio.Event().wait()
        response = rpc_pb2.RangeResponse(count=len(wanted.key))
        response.kvs.extend(kv_pb2.KeyValue(key=b"k", lease=number) for number in range(wanted.limit))
        return response.SerializeToString()

    async def watch(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        try:
            async for request in requests:
                wanted = rpc_pb2.WatchRequest.FromString(request)
                if wanted.HasField("cancel_request"):
                    raise errors.Compacted
                yield rpc_pb2.WatchResponse(watch_id=wanted.create_request.watch_id, created=True).SerializeToString()
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def keep_alive(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            wanted = rpc_pb2.LeaseKeepAliveRequest.FromString(request)
            yield rpc_pb2.LeaseKeepAliveResponse(ID=wanted.ID).SerializeToString()

    async def snapshot(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        yield rpc_pb2.SnapshotResponse(remaining_bytes=1).SerializeToString()
        yield rpc_pb2.SnapshotResponse().SerializeToString()

    def gateway(self, load: Load | None = None) -> tuple[Gateway, App]:
        app = App(
            {
                "/etcdserverpb.KV/Range": Method.unary(self.range),
                "/etcdserverpb.Watch/Watch": Method.bidi(self.watch),
                "/etcdserverpb.Lease/LeaseKeepAlive": Method.bidi(self.keep_alive),
                "/etcdserverpb.Maintenance/Snapshot": Method.server_stream(self.snapshot),
            },
            max_receive_bytes=self.limit,
            load=load,
        )
        return Gateway(app, max_receive_bytes=self.limit), app


class Exchange:
    """One HTTP request under way: what the client sends is put in, what it receives comes out."""

    def __init__(self, gateway: Gateway, path: str, method: str, headers: dict[str, str]) -> None:
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
        }
        self.task = asyncio.create_task(gateway(scope, self._incoming.get, self._outgoing.put))

    def send(self, body: bytes, *, more: bool = False) -> None:
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def event(self) -> dict[str, Any]:
        return await asyncio.wait_for(self._outgoing.get(), 90)

    async def start(self) -> tuple[int, dict[bytes, bytes]]:
        event = await self.event()
        assert event["type"] == "http.response.start"
        return event["status"], dict(event["headers"])

    async def line(self) -> Any:
        event = await self.event()
        value = json.loads(event["body"])
        assert event["body"].endswith(b"\n") == ("result" in value)
        return value

    async def answer(self) -> tuple[int, bytes]:
        status, headers = await self.start()
        body = b""
        while True:
            event = await self.event()
            body += event["body"]
            if not event.get("more_body"):
                break
        if b"content-length" in headers:
            assert int(headers[b"content-length"]) == len(body)
        return status, body


Ask = Callable[..., Exchange]


def run(scenario: Callable[[Service, Ask, App], Awaitable[None]]) -> None:
    """Run a scenario; every exchange must be over when it ends."""

    async def main() -> None:
        service = Service()
        gateway, app = service.gateway()
        exchanges: list[Exchange] = []

        def ask(path: str, body: bytes | None = b"", *, method: str = "POST", **headers: str) -> Exchange:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            exchange = Exchange(gateway, path, method, named)
            exchanges.append(exchange)
            if body is not None:
                exchange.send(body)
            return exchange

        await scenario(service, ask, app)
        await asyncio.wait_for(asyncio.gather(*(exchange.task for exchange in exchanges)), 90)

    asyncio.run(main())


def test_a_unary_call() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        exchange = ask("/v3/kv/range", b'{"key":"Zm9v"}')
        status, headers = await exchange.start()
        assert status == 200
        assert headers == {
            b"content-type": b"application/json",
            b"grpc-metadata-content-type": b"application/grpc",
            b"content-length": b"13",
        }
        assert (await exchange.event())["body"] == b'{"count":"3"}'

    run(scenario)


def test_a_body_in_pieces() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        exchange = ask("/v3/kv/range", None)
        exchange.send(b'{"key":"Z', more=True)
        exchange.send(b'm9v"}')
        assert await exchange.answer() == (200, b'{"count":"3"}')

    run(scenario)


STATUS = {1: 408, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 412, 10: 409, 11: 400, 12: 501, 13: 500}
STATUS |= {14: 503, 15: 500, 16: 401}


@pytest.mark.parametrize("code", range(1, 17))
def test_an_error_has_its_http_status_and_its_text_byte_for_byte(code: int) -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        status, body = await ask("/v3/kv/range", b'{"key":"cmVmdXNl","limit":%d}' % code).answer()
        assert status == STATUS[code]
        text = "100 % nö\\n"
        assert body == f'{{"error":"{text}","message":"{text}","code":{code}}}'.encode()

    run(scenario)


def test_paths_methods_and_bodies_that_are_wrong() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        assert await ask("/v3/nosuch").answer() == (404, b"Not Found\n")
        assert await ask("/v3/kv/range/").answer() == (404, b"Not Found\n")
        assert await ask("/v3/kv/range", method="GET").answer() == (405, b"Method Not Allowed\n")
        status, body = await ask("/v3/kv/range", b"{bad").answer()
        assert status == 400
        text = "invalid character 'b' looking for beginning of object key string"
        assert json.loads(body) == {"error": text, "message": text, "code": 3}
        # A stream's request is read when the call is under way already.
        status, body = await ask("/v3/watch", b"{bad").answer()
        assert (status, json.loads(body)["code"]) == (500, 2)

    run(scenario)


def test_a_method_without_a_handler_is_unimplemented() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        status, body = await ask("/v3/lease/grant", b"{}").answer()
        assert (status, json.loads(body)["code"]) == (501, 12)
        status, body = await ask("/v3/election/observe", b"{}").answer()
        assert (status, json.loads(body)["error"]["grpc_code"]) == (501, 12)

    run(scenario)


def test_the_limit_on_requests_holds_here_too() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        status, body = await ask("/v3/kv/range", b'{"key":"' + b"YWFh" * 400 + b'"}').answer()
        assert status == 429
        assert json.loads(body)["message"] == f"grpc: received message larger than max (1203 vs. {LIMIT})"
        exchange = ask("/v3/kv/range", None)
        for _ in range(5):
            exchange.send(b" " * LIMIT, more=True)
        status, body = await exchange.answer()
        assert (status, json.loads(body)["code"]) == (429, 8)

    run(scenario)


def test_headers_become_metadata_but_not_those_that_make_the_call() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        status, _ = await ask(
            "/v3/kv/range",
            b"{}",
            authorization="token",
            grpc_metadata_hasleader="true",
            grpc_metadata_grpc_encoding="nosuch",
            grpc_metadata_content_type="text/html",
            cookie="secret",
        ).answer()
        assert status == 200
        assert service.context is not None
        metadata = dict(service.context.metadata)
        assert metadata.pop("grpcgateway-accept")
        assert metadata == {
            "authorization": "token",
            "hasleader": "true",
            "content-type": "application/grpc",
            "te": "trailers",
        }

    run(scenario)


def test_a_time_limit_ends_the_call() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        status, body = await ask("/v3/kv/range", b'{"key":"d2FpdA=="}', grpc_timeout="30m").answer()
        assert (status, json.loads(body)["message"]) == (504, "context deadline exceeded")
        status, body = await ask("/v3/kv/range", b"{}", grpc_timeout="1x").answer()
        assert (status, json.loads(body)["message"]) == (400, "invalid grpc-timeout: 1x")

    run(scenario)


def test_a_stream_answers_line_by_line_while_requests_arrive() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        exchange = ask("/v3/watch", None)
        exchange.send(b'{"create_request":{"watch_id":1}} {"create_', more=True)
        assert (await exchange.start())[0] == 200
        assert await exchange.line() == {"result": {"watch_id": "1", "created": True}}
        exchange.send(b'request":{"watch_id":"2"}}\n', more=True)
        assert await exchange.line() == {"result": {"watch_id": "2", "created": True}}
        exchange.send(b'{"cancel_request":{}}', more=True)
        assert await exchange.line() == {
            "error": {
                "grpc_code": 11,
                "http_code": 400,
                "message": "etcdserver: mvcc: required revision has been compacted",
                "http_status": "Bad Request",
            }
        }
        exchange.leave()

    run(scenario)


def test_a_stream_outlives_its_requests_until_the_client_leaves() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        exchange = ask("/v3/watch", b'{"create_request":{}}')
        await exchange.start()
        assert await exchange.line() == {"result": {"created": True}}
        assert not service.ended.is_set()
        exchange.leave()
        await asyncio.wait_for(service.ended.wait(), 90)

    run(scenario)


def test_an_error_before_the_first_answer_is_the_status_of_the_response() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        exchange = ask("/v3/watch", b'{"cancel_request":{}}')
        assert (await exchange.start())[0] == 400
        assert (await exchange.line())["error"]["grpc_code"] == 11

    run(scenario)


def test_requests_after_a_broken_one_are_not_read() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        status, body = await ask("/v3/lease/keepalive", b'{"ID":"7"} {"ID":8}{x').answer()
        assert (status, body) == (200, b'{"result":{"ID":"7"}}\n{"result":{"ID":"8"}}\n')
        exchange = ask("/v3/lease/keepalive", None)
        exchange.send(b'{"ID":7}', more=True)
        exchange.send(b"{]", more=True)
        exchange.send(b'{"ID":8}')
        assert await exchange.answer() == (200, b'{"result":{"ID":"7"}}\n')
        assert await ask("/v3/lease/keepalive", b"").answer() == (200, b"")

    run(scenario)


def test_what_takes_long_to_read_or_write_leaves_the_loop_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            threads.append(threading.current_thread() is not threading.main_thread())
            return function(*arguments)

        return noted

    for name in ("decode", "encode"):
        monkeypatch.setattr(app_module, name, noting(getattr(app_module, name)))
    monkeypatch.setattr(Service, "limit", 1 << 20)

    async def scenario(service: Service, ask: Ask, app: App) -> None:
        async def of(body: bytes) -> list[bool]:
            threads.clear()
            assert (await ask("/v3/kv/range", body).answer())[0] == 200
            return threads

        assert await of(b'{"key":"YQ==","limit":10}') == [False, False]
        assert await of(b'{"key":"YQ==","limit":1000}') == [False, True]
        assert await of(b'{"x":[' + b"{}," * 3000 + b'{}],"key":"YQ=="}') == [True, False]
        threads.clear()
        exchange = ask("/v3/watch", None)
        # In pieces none of which is large.
        for piece in (b'{"create_request":{"x":[', *[b"[]," * 500] * 4, b"[]]}}"):
            exchange.send(piece, more=True)
        await exchange.start()
        assert await exchange.line() == {"result": {"created": True}}
        assert threads == [True, False]
        exchange.leave()

    run(scenario)


def test_a_response_that_streams_alone() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        status, body = await ask("/v3/maintenance/snapshot").answer()
        assert (status, body) == (200, b'{"result":{"remaining_bytes":"1"}}\n{"result":{}}\n')

    run(scenario)


def test_a_server_that_stops_ends_streams() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        exchange = ask("/v3/watch", b'{"create_request":{}}')
        await exchange.start()
        await exchange.line()
        app.stop_streams()
        assert (await exchange.line())["error"]["grpc_code"] == 14

    run(scenario)


def test_a_client_that_leaves_early_leaves_nothing_behind() -> None:
    async def scenario(service: Service, ask: Ask, app: App) -> None:
        for path in ("/v3/kv/range", "/v3/watch"):
            exchange = ask(path, None)
            exchange.send(b"{", more=True)
            exchange.leave()

    run(scenario)


def test_a_websocket_gives_its_token_to_the_call_and_ends_with_its_client() -> None:
    asyncio.run(_serve_websockets())


async def _serve_websockets() -> None:
    service = Service()
    app = App(
        {"/etcdserverpb.Watch/Watch": Method.bidi(service.watch), "/etcdserverpb.KV/Range": Method.unary(service.range)}
    )
    gateway = Gateway(app, max_receive_bytes=LIMIT)
    sent: list[Any] = []
    arriving: asyncio.Queue[Any] = asyncio.Queue()

    async def send(event: Any) -> None:
        sent.append(event)
        if "created" in event.get("text", ""):
            arriving.put_nowait({"type": "websocket.disconnect"})

    def scope(path: str) -> Any:
        return {"type": "websocket", "path": path, "headers": [(b"host", b"h")], "subprotocols": ["Bearer", "t1"]}

    arriving.put_nowait({"type": "websocket.connect"})
    arriving.put_nowait({"type": "websocket.receive", "text": '{"key":"YQ=="}'})
    await gateway(scope("/v3/kv/range"), arriving.get, send)
    assert service.context is not None
    assert service.context.metadata["authorization"] == "Bearer t1"
    assert sent == [
        {"type": "websocket.accept", "subprotocol": "Bearer", "headers": []},
        {"type": "websocket.send", "text": '{"count":"1"}'},
        {"type": "websocket.close", "code": 1000},
    ]
    for event in ("connect", "receive"):
        arriving.put_nowait({"type": f"websocket.{event}", "bytes": b'{"create_request":{"watch_id":3}}'})
    await gateway(scope("/v3/watch"), arriving.get, send)
    assert sent[4] == {"type": "websocket.send", "text": '{"result":{"watch_id":"3","created":true}}'}
    assert service.ended.is_set()
