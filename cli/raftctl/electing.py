"""What `raftctl elect` does: lead, or hear who does."""

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

from cli.raftctl.failure import Failure
from cli.raftctl.printers import Printer
from cli.raftctl.stopping import Stop, first

if TYPE_CHECKING:
    from raftkv.client import AsyncClient


def campaign(client: "AsyncClient", name: bytes, value: bytes, printer: Printer) -> None:
    """Stand, print the key when elected, and lead until told to stop.

    Raises:
        Failure: leadership was lost.
    """
    asyncio.run(_campaign(client, name, value, printer))


def observe(client: "AsyncClient", name: bytes, printer: Printer) -> None:
    """Print who leads, and again at every change, until told to stop."""
    asyncio.run(_observe(client, name, printer))


async def _campaign(client: "AsyncClient", name: bytes, value: bytes, printer: Printer) -> None:
    stop = Stop()
    async with client, client.election(name) as election:
        await stop.unless(election.campaign(value))
        printer.range(await client.range(election.key))
        sys.stdout.flush()
        await first(stop.asked, election.lease.lost)
        if not stop.asked.is_set():
            raise Failure("elect: session expired")


async def _observe(client: "AsyncClient", name: bytes, printer: Printer) -> None:
    from raftkv.pb import rpc_pb2

    stop = Stop()

    async def show() -> None:
        async for told in client.election(name).observe():
            printer.range(rpc_pb2.RangeResponse(header=told.header, kvs=[told.kv]))
            sys.stdout.flush()

    async with client:
        with contextlib.suppress(asyncio.CancelledError):
            showing = asyncio.ensure_future(show())
            await first(showing, stop.asked)
            showing.cancel()
            await showing
