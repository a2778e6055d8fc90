"""The HTTP server under the RPC layer: the one module that touches h2corn."""

import asyncio
import contextlib
import socket

import h2corn

from raftkv.rpc.app import ASGIApp


class HttpServer:
    """An ASGI application on one address, in the running event loop."""

    def __init__(self, app: ASGIApp, listener: socket.socket, *, max_concurrent_streams: int) -> None:
        """Take over a bound socket; `max_concurrent_streams` is per connection."""
        self._listener = listener
        self._config = h2corn.Config(
            bind=(f"fd://{listener.fileno()}",),
            grpc=True,
            lifespan="off",
            access_log=False,
            max_concurrent_streams=min(max_concurrent_streams, (1 << 32) - 1),
            timeout_graceful_shutdown=3.0,
            # Watches are quiet for hours, clients keep idle connections, slow readers are the handlers' business.
            timeout_keep_alive=0,
            timeout_request_body_idle=0,
            h2_timeout_response_stall=0,
            limit_request_fields=0,
        )
        self._server = h2corn.Server(app, self._config)
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens, host:port."""
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Accept connections from here on."""
        self._task = asyncio.create_task(self._server.serve())
        await self._server.wait_started()

    async def stop(self) -> None:
        """Refuse new calls, let those under way end for a few seconds, close. Safe to call twice."""
        if self._task is not None:
            task, self._task = self._task, None
            self._server.shutdown()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._listener.close()


def listen(host: str, port: int) -> socket.socket:
    """Bind a TCP listener.

    Raises:
        OSError: the address is in use or not ours.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
