"""The HTTP server under the RPC layer: the one module that touches h2corn."""

import asyncio
import logging
import os
import re
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import h2corn

from raftkv.rpc.app import App, ASGIApp

logger = logging.getLogger(__name__)

MAX_STREAMS = (1 << 32) - 1
STREAM_WINDOW_BYTES = 4 << 20
"""How much of a request the host takes before the handler reads it."""
CONNECTION_WINDOW_BYTES = 16 * STREAM_WINDOW_BYTES
"""The same for all streams of a connection. Were it no larger, one handler that does not read would hold all others."""
_DEAD_PEER_SECONDS = 60
_BANNER = re.compile(rb"(^|\n)\n*h2corn v.*?\n\n", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files of a TLS port, in PEM. With `client_ca`, only clients with a certificate of that authority get in."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class HttpServer:
    """An ASGI application on one address, in the running event loop."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        max_concurrent_streams: int,
        grace_seconds: float = 3.0,
        tls: Tls | None = None,
    ) -> None:
        """Take over a bound socket; `max_concurrent_streams` is per connection, `grace_seconds` bounds `stop`.

        Raises:
            ValueError: a TLS file is missing or not PEM.
        """
        self._app = app
        self._listener = listener
        config = h2corn.Config(
            bind=(f"fd://{listener.fileno()}",),
            grpc=True,
            lifespan="off",
            access_log=False,
            max_concurrent_streams=min(max_concurrent_streams, MAX_STREAMS),
            max_request_body_size=0,
            # One event loop cannot feed more, and each more makes another processor switch per request.
            runtime_threads=1,
            h2_initial_stream_window_size=STREAM_WINDOW_BYTES,
            h2_initial_connection_window_size=CONNECTION_WINDOW_BYTES,
            timeout_graceful_shutdown=grace_seconds,
            # Watches are quiet for hours, clients keep idle connections, slow readers are the handlers' business.
            timeout_keep_alive=0,
            timeout_request_body_idle=0,
            h2_timeout_response_stall=0,
            limit_request_fields=0,
            certfile=tls.certificate if tls else None,
            keyfile=tls.key if tls else None,
            ca_certs=tls.client_ca if tls else None,
            cert_reqs="required" if tls and tls.client_ca else "none",
        )
        self._server = h2corn.Server(app, config)
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens, host:port."""
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Accept connections from here on."""
        with _without_banner:
            self._task = asyncio.create_task(self._server.serve())
            await self._server.wait_started()

    async def stop(self) -> None:
        """Send GOAWAY, end streams with UNAVAILABLE, let unary calls under way finish, close. Safe to call twice."""
        if self._task is not None:
            task, self._task = self._task, None
            self._server.shutdown()
            if isinstance(self._app, App):
                self._app.stop_streams()
            try:
                await task
            except RuntimeError as error:
                # A handler that swallows its cancellation; the process is about to end anyway.
                logger.warning("the server at %s stopped with calls still running: %s", self.address, error)
        self._listener.close()


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
        listener.listen(1024)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _notice_dead_peers(listener: socket.socket) -> None:
    """Have connections fail when the other machine is gone: h2corn sends no pings. Accepted sockets inherit this."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _DEAD_PEER_SECONDS // 2),
        ("TCP_KEEPINTVL", _DEAD_PEER_SECONDS // 6),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _DEAD_PEER_SECONDS * 1000),
    ):
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class _BannerFilter:
    """Keeps h2corn's start banner, which no setting turns off, from stderr, while any server starts.

    It is written to the descriptor directly, so that is what must be turned aside; what others wrote there in these
    few milliseconds comes out afterwards.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._stderr = -1
        self._aside: BinaryIO | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._depth += 1
            # A process that was started without stderr has something else under this number.
            if self._depth == 1 and sys.__stderr__ is not None:
                self._aside = tempfile.TemporaryFile()
                self._stderr = os.dup(2)
                os.dup2(self._aside.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0 and self._aside is not None:
                os.dup2(self._stderr, 2)
                os.close(self._stderr)
                aside, self._aside = self._aside, None
                with aside:
                    aside.seek(0)
                    os.write(2, _BANNER.sub(rb"\1", aside.read()))


_without_banner = _BannerFilter()
