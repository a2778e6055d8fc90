"""Proxies that know messages between members: some are doubled, late and overtaken, or lost.

What TCP carries arrives once and in order, and the kernel may have no netem. So each member has a gRPC server before
its peer port that reads the streams of the others, message by message, and sends what is left of them on.
"""

import contextlib
import heapq
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from raftkv.pb import peer_pb2
from raftkv.peer.snapshot import SNAPSHOT
from raftkv.peer.transport import MESSAGES
from tests.partition.proxies import Proxies

HANDED_ON_ONCE = frozenset({"propose"})
"""Kinds that are not doubled: the transport promises to send nothing twice, and a leader appends all it gets."""
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
_STREAMS = 64


@dataclass(frozen=True)
class Weather:
    """What becomes of a message: shares of all, and how late a late one is at most."""

    lost: float = 0.04
    doubled: float = 0.3
    late: float = 0.4
    late_seconds: float = 0.3
    once: frozenset[str] = HANDED_ON_ONCE


class Post:
    """The messages of one stream, as they leave the proxy: each batch holds what is due at one moment."""

    def __init__(self, weather: Weather, rng: random.Random, counts: "Counter[tuple[str, str]]") -> None:
        """`counts` is added to: what happened, and to which kind of message."""
        self._weather = weather
        self._rng = rng
        self._counts = counts
        self._due: list[tuple[float, int, str, peer_pb2.Message]] = []
        self._number = itertools.count()
        self._newest = -1
        self._changed = threading.Condition()
        self._closed = False

    def take(self, batch: bytes) -> None:
        """Decide about each message of a batch."""
        messages = peer_pb2.MessageBatch.FromString(batch).messages
        with self._changed:
            now = time.monotonic()
            for message in messages:
                kind = message.WhichOneof("kind") or ""
                number = next(self._number)
                for _ in range(self._copies(kind)):
                    heapq.heappush(self._due, (now + self._delay(kind), number, kind, message))
            self._changed.notify()

    def _copies(self, kind: str) -> int:
        weather, dice = self._weather, self._rng.random()
        if dice < weather.lost:
            self._counts["lost", kind] += 1
            return 0
        if dice < weather.lost + weather.doubled and kind not in weather.once:
            self._counts["doubled", kind] += 1
            return 2
        return 1

    def _delay(self, kind: str) -> float:
        if self._rng.random() >= self._weather.late:
            return 0.0
        self._counts["late", kind] += 1
        return self._rng.uniform(0, self._weather.late_seconds)

    def close(self) -> None:
        """Send nothing more: what waits dies with its stream."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __iter__(self) -> Iterator[bytes]:
        while batch := self._next():
            yield batch

    def _next(self) -> bytes:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                left: list[peer_pb2.Message] = []
                while self._due and self._due[0][0] <= now:
                    _, number, kind, message = heapq.heappop(self._due)
                    if number < self._newest:
                        self._counts["overtaken", kind] += 1
                    self._newest = max(self._newest, number)
                    left.append(message)
                if left:
                    return peer_pb2.MessageBatch(messages=left).SerializeToString()
                self._changed.wait(self._due[0][0] - now if self._due else None)
        return b""


class Carrier(grpc.GenericRpcHandler):
    """The server before one member's peer port."""

    def __init__(self, target: str, weather: Weather, seed: str, counts: "Counter[tuple[str, str]]") -> None:
        self._target = target
        self._weather = weather
        self._seed = seed
        self._counts = counts
        self._streams = itertools.count()
        self._server = grpc.server(ThreadPoolExecutor(_STREAMS), [self], options=_OPTIONS)
        self.port: int = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def close(self) -> None:
        """End all calls."""
        self._server.stop(0).wait(20)

    def service(self, handler_call_details: Any) -> Any:
        """Find who passes a call on."""
        path: str = handler_call_details.method
        if path == MESSAGES:
            return grpc.stream_unary_rpc_method_handler(self._pass_messages)
        if path == SNAPSHOT:
            # Its parts are those of one file, under one hash: not messages, and nothing that may come twice.
            return grpc.stream_unary_rpc_method_handler(self._pass_snapshot)
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._ask(path, request, context))

    def _pass_messages(self, batches: Iterator[bytes], context: Any) -> bytes:
        post = Post(self._weather, random.Random(f"{self._seed}/{next(self._streams)}"), self._counts)

        def read() -> None:
            # What the caller's end raises, its callback tells as well.
            with contextlib.suppress(grpc.RpcError):
                for batch in batches:
                    post.take(batch)

        threading.Thread(target=read, daemon=True).start()
        try:
            return self._stream(MESSAGES, iter(post), context)
        finally:
            post.close()

    def _pass_snapshot(self, parts: Iterator[bytes], context: Any) -> bytes:
        return self._stream(SNAPSHOT, parts, context)

    def _stream(self, path: str, requests: Iterator[bytes], context: Any) -> bytes:
        with grpc.insecure_channel(self._target, options=_OPTIONS) as channel:
            call = channel.stream_unary(path).future(requests, metadata=_metadata(context))
            return _answer(call, context)

    def _ask(self, path: str, request: bytes, context: Any) -> bytes:
        with grpc.insecure_channel(self._target, options=_OPTIONS) as channel:
            call = channel.unary_unary(path).future(
                request, metadata=_metadata(context), timeout=context.time_remaining()
            )
            return _answer(call, context)


def _metadata(context: Any) -> list[tuple[str, str]]:
    """What the caller says of itself; grpcio adds its own user-agent."""
    return [(name, value) for name, value in context.invocation_metadata() if name.startswith("x-")]


def _answer(call: Any, context: Any) -> bytes:
    """Wait for the member's answer, and give it, or its error, to the caller."""
    if not context.add_callback(call.cancel):
        call.cancel()
    with contextlib.suppress(grpc.FutureCancelledError):
        if call.exception() is None:
            answer: bytes = call.result()
            return answer
        context.abort(call.code(), call.details())
    context.abort(grpc.StatusCode.CANCELLED, "the caller went away")
    raise AssertionError("abort raises")


class Messages(Proxies):
    """Proxies whose members get messages in the order, and as often, as a seed says."""

    def __init__(self, size: int, seed: int, weather: Weather) -> None:
        self.seed = seed
        self.counts: Counter[tuple[str, str]] = Counter()
        self._weather = weather
        self._carriers: list[Carrier] = []
        super().__init__(size, "proxies of messages")

    @property
    def kind(self) -> str:
        """The seed, and what has become of messages so far."""
        told = ", ".join(f"{self.count(what)} {what}" for what in ("doubled", "late", "overtaken", "lost"))
        return f"{super().kind}, seed {self.seed}: {told}"

    def count(self, what: str) -> int:
        """How many messages of any kind it happened to."""
        return sum(count for (happened, _), count in list(self.counts.items()) if happened == what)

    def _before_peers(self, number: int, port: int) -> int:
        carrier = Carrier(f"127.0.0.1:{port}", self._weather, f"{self.seed}/{number}", self.counts)
        self._carriers.append(carrier)
        return carrier.port

    def close(self) -> None:
        """End all connections, listeners and servers."""
        super().close()
        for carrier in self._carriers:
            carrier.close()
