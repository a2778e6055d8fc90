"""A client of HTTP/1.1 that leaves a quiet stream is noticed."""

import asyncio
import json
from collections.abc import Callable

import pytest

from raftkv.gateway import Gateway
from raftkv.http import HttpServer, listen
from tests.unit.gateway.test_app import LIMIT, Service


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("leave", [asyncio.StreamWriter.close, asyncio.StreamWriter.write_eof])
def test_a_client_that_leaves_is_noticed_and_one_that_stays_is_not(
    leave: Callable[[asyncio.StreamWriter], None], host: str
) -> None:
    async def main() -> None:
        service, staying = Service(), Service()
        served = []
        try:
            for one in (service, staying):
                _, app = one.gateway()
                app.http = Gateway(app, max_receive_bytes=LIMIT)
                served.append(HttpServer(app, listen(host, 0), grace_seconds=1.0))
                await served[-1].start()
            writers = [await watch(host, server) for server in served]
            leave(writers[0])
            await asyncio.wait_for(service.ended.wait(), 90)
            assert not staying.ended.is_set()
            writers[1].close()
            await asyncio.wait_for(staying.ended.wait(), 90)
        finally:
            for server in served:
                await server.stop()

    asyncio.run(main())


async def watch(host: str, server: HttpServer) -> asyncio.StreamWriter:
    port = int(server.address.rpartition(":")[2])
    reader, writer = await asyncio.open_connection(host, port)
    body = b'{"create_request":{}}'
    writer.write(b"POST /v3/watch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    line = b""
    while not line.startswith(b"{"):
        line = await asyncio.wait_for(reader.readline(), 90)
    assert json.loads(line) == {"result": {"created": True}}
    return writer
