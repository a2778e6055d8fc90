"""The ASGI servers that the RPC layer is tested on, the one that ships first, inside the test on a free port."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from h2.settings import SettingCodes

from raftkv.http import MAX_STREAMS, STREAM_WINDOW_BYTES, HttpServer, listen
from raftkv.rpc import App
from tests.unit.rpc.service import Service
from tests.unit.rpc.wire import Wire, connect


@contextlib.asynccontextmanager
async def raftkv_host(app: App) -> AsyncIterator[str]:
    server = HttpServer(app, listen("127.0.0.1", 0), grace_seconds=1.0)
    await server.start()
    try:
        yield server.address
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def h2corn(app: App) -> AsyncIterator[str]:
    import h2corn

    with listen("127.0.0.1", 0) as listener:
        config = h2corn.Config(
            bind=(f"fd://{listener.fileno()}",),
            grpc=True,
            lifespan="off",
            access_log=False,
            max_concurrent_streams=MAX_STREAMS,
            max_request_body_size=0,
            runtime_threads=1,
            h2_initial_stream_window_size=STREAM_WINDOW_BYTES,
            h2_initial_connection_window_size=16 * STREAM_WINDOW_BYTES,
            timeout_graceful_shutdown=1.0,
            timeout_keep_alive=0,
            limit_request_fields=0,
        )
        server = h2corn.Server(app, config)
        task = asyncio.create_task(server.serve())
        await server.wait_started()
        host, port = listener.getsockname()[:2]
        try:
            yield f"{host}:{port}"
        finally:
            server.shutdown()
            app.stop_streams()
            with contextlib.suppress(RuntimeError):
                await task


@contextlib.asynccontextmanager
async def hypercorn(app: App) -> AsyncIterator[str]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listener: socket.socket = listen("127.0.0.1", 0)
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.errorlog = None
    config.graceful_timeout = 0.2
    config.h2_max_concurrent_streams = 10_000
    stop = asyncio.Event()
    task = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
    host, port = listener.getsockname()[:2]
    try:
        yield f"{host}:{port}"
    finally:
        stop.set()
        # From Python 3.12 on hypercorn 0.18 waits first, for ever, for connections that ended calls keep open.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(task, 2.0)
        listener.detach()


HOSTS = {"raftkv": raftkv_host, "h2corn": h2corn, "hypercorn": hypercorn}


@contextlib.asynccontextmanager
async def wired(
    host: str, settings: dict[SettingCodes, int] | None = None, **options: object
) -> AsyncIterator[tuple[Service, Wire]]:
    """The test service on a host, and one connection to it."""
    service = Service()
    async with HOSTS[host](service.app(**options)) as address, connect(address, settings) as wire:
        service.address = address
        yield service, wire
