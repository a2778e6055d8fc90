"""A listener in the running event loop: HTTP/2 and HTTP/1.1 on one port, told apart by their first bytes."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Protocol, cast

from raftkv.http.arrivals import Arrivals
from raftkv.http.asgi import ASGIApp
from raftkv.http.connection import MAX_STREAMS, Connection, address
from raftkv.http.frames import PREFACE
from raftkv.http.http1 import Http1
from raftkv.http.load import Load
from raftkv.http.tls import Guard, Refused, Tls

logger = logging.getLogger(__name__)

FIRST_BYTES_SECONDS = 10.0
"""How long a TLS handshake may take, and a connection stay open that has not said whether it speaks HTTP/2."""
_BUFFER_BYTES = 256 << 10
_DEAD_PEER_SECONDS = 60
_BACKLOG = 1024


class AnyConnection(Protocol):
    """What a server knows of a connection."""

    def leave(self) -> None:
        """Begin no more; close when what is under way is done."""

    def abort(self) -> None:
        """End what is under way, and close."""


class HttpServer:
    """An ASGI application on one address."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        max_concurrent_streams: int = MAX_STREAMS,
        grace_seconds: float = 3.0,
        tls: Tls | None = None,
        load: Load | None = None,
        ping_seconds: float = 0.0,
    ) -> None:
        """Take over a bound socket; `max_concurrent_streams` is per connection, `grace_seconds` bounds `stop`.

        `load` may be shared with other servers; pings of a connection must be `ping_seconds` apart (0: need not).

        Raises:
            ValueError: a TLS file is missing or cannot be used.
        """
        host, port = listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        """Where it listens, host:port."""
        self._app = app
        self._listener = listener
        self._max_streams = max_concurrent_streams
        self._grace_seconds = grace_seconds
        self.load = load or Load()
        self._ping_seconds = ping_seconds
        self._guard = Guard(tls) if tls else None
        self._arrivals: Arrivals[_Unknown] | None = None
        self._stopping = False
        self._connections: set[AnyConnection] = set()
        self._empty = asyncio.Event()

    async def start(self) -> None:
        """Accept connections from here on."""
        self._arrivals = Arrivals(
            self._listener,
            self._guard.context if self._guard else None,
            FIRST_BYTES_SECONDS,
            arrive=self._arrive,
            crowded=self._crowded,
            lost=self.forget,
        )

    async def stop(self) -> None:
        """Send GOAWAY, end streams, let other requests under way finish, close. Safe to call twice."""
        again, self._stopping = self._stopping, True
        if again or self._arrivals is None:
            self._listener.close()
            return
        await self._arrivals.close()
        for connection in tuple(self._connections):
            connection.leave()
        stop_streams: Callable[[], None] | None = getattr(self._app, "stop_streams", None)
        if stop_streams is not None:
            stop_streams()
        try:
            async with asyncio.timeout(self._grace_seconds):
                await self._closed()
        except TimeoutError:
            logger.warning("the server at %s stopped with requests still running", self.address)
            for connection in tuple(self._connections):
                connection.abort()
            try:
                async with asyncio.timeout(self._grace_seconds):
                    await self._closed()
            except TimeoutError:
                logger.error("requests at %s do not end although they were cancelled", self.address)
        self._listener.close()

    async def _closed(self) -> None:
        while self._connections:
            self._empty.clear()
            await self._empty.wait()

    def _arrive(self) -> "_Unknown | None":
        """What waits for its first bytes, or for a handshake, and counts as a connection from its beginning."""
        if not self._has_room():
            return None
        unknown = _Unknown(self)
        self.made(unknown)
        return unknown

    def made(self, connection: AnyConnection) -> None:
        """Count a connection."""
        self._connections.add(connection)
        self.load.connections += 1
        if self._stopping:
            connection.leave()

    def forget(self, connection: AnyConnection) -> None:
        """Count it no longer."""
        if connection in self._connections:
            self._connections.discard(connection)
            self.load.connections -= 1
        if not self._connections:
            self._empty.set()

    def _crowded(self) -> bool:
        return self.load.connections >= self.load.max_connections

    def _has_room(self) -> bool:
        """Whether one more connection may be; one that may not counts as refused."""
        if not self._crowded():
            return True
        load = self.load
        if not load.refused_connections & (load.refused_connections - 1):
            # The first, the second, the fourth: a flood of connections is no flood of lines.
            logger.warning("%d connections are open, which is the most; others are refused", load.connections)
        load.refused_connections += 1
        return False

    def admit(self, connection: "_Unknown", transport: asyncio.Transport) -> str | None:
        """The user that a client's certificate names, or nothing; None: it may not come in."""
        if self._arrivals is None or connection not in self._connections:
            # It was dropped in the moment in which it was ready.
            return None
        self._arrivals.shaken(connection)
        if self._guard is None:
            return ""
        try:
            return self._guard.admit(transport.get_extra_info("ssl_object"))
        except Refused as error:
            logger.warning("rejected connection of %s at %s: %s", address(transport, "peername"), self.address, error)
            return None

    def protocol(self, data: bytes, user: str) -> Connection | Http1 | None:
        """What speaks the protocol of these first bytes; None while they may be either's."""
        if data.startswith(PREFACE[:16]):
            return Connection(self._app, self._max_streams, self.forget, user, self.load, self._ping_seconds)
        if PREFACE.startswith(data):
            return None
        return Http1(self._app, self.made, self.forget, user)


class _Unknown(asyncio.Protocol):
    """A connection of which it is not known yet what it speaks."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._user = ""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first bytes, but not for ever."""
        # Not every loop's transports inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        user = self._server.admit(self, self._transport)
        if user is None:
            self._transport.abort()
            return
        self._user = user
        self._transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        self._timer = asyncio.get_running_loop().call_later(FIRST_BYTES_SECONDS, self.abort)

    def data_received(self, data: bytes) -> None:
        """Hand the connection over as soon as its protocol is known."""
        if self._transport is None or self._transport.is_closing():
            return
        self._received += data
        protocol = self._server.protocol(self._received, self._user)
        if protocol is None:
            return
        received, self._received = self._received, b""
        self._end()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        self._server.made(protocol)
        protocol.data_received(received)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._server.forget(self)

    def leave(self) -> None:
        """Close: nothing was asked yet."""
        self.abort()

    def abort(self) -> None:
        """Close."""
        if self._transport is not None:
            self._transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """Bind a TCP listener; port 0 takes any free one.

    Raises:
        OSError: the address is in use or not ours.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _notice_dead_peers(listener)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _notice_dead_peers(listener: socket.socket) -> None:
    """Have connections fail when the other machine is gone: no pings are sent. Accepted sockets inherit this."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _DEAD_PEER_SECONDS // 2),
        ("TCP_KEEPINTVL", _DEAD_PEER_SECONDS // 6),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _DEAD_PEER_SECONDS * 1000),
    ):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
