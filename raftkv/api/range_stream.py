"""Answers to RangeStream, part by part."""

from collections.abc import AsyncIterator, Awaitable, Callable

from raftkv.api.access import caller
from raftkv.mvcc.encoding import varint
from raftkv.pb import rpc_pb2
from raftkv.rpc import Context
from raftkv.server.server import Server


async def range_stream(
    server: Server,
    wanted: rpc_pb2.RangeRequest,
    context: Context,
    max_bytes: int,
    turn: Callable[[], Awaitable[None]],
    *,
    wait_first: bool,
) -> AsyncIterator[bytes]:
    """Answer the keys of an interval in chunks, at one revision; each but the first waits for a `turn`."""
    if not wanted.serializable:
        await server.linearizable()
    if server.auth.enabled:
        server.rules.check_range(caller(context), wanted)
    if wait_first:
        await turn()
    header = server.header()
    for part in server.store.range_stream(wanted, max_bytes):
        if part.last:
            body = header + part.body
            yield b"\x0a" + varint(len(body)) + body
            return
        if part.body:
            yield b"\x0a" + varint(len(part.body)) + part.body
        # Sending may not wait: the next part is work for another turn of the loop, of which others want one, too.
        await turn()
