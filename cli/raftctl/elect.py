"""elect: lead, or hear who does."""

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import click

from cli.raftctl.failure import BAD_ARGUMENTS, Failure
from cli.raftctl.flags import Command
from cli.raftctl.printers import Printer
from cli.raftctl.session import global_options, session
from cli.raftctl.stopping import Stop, first

if TYPE_CHECKING:
    from raftkv.client import AsyncClient


@click.command("elect", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME [VALUE]")
@click.option("-l", "--listen", is_flag=True, help="Do not stand; print who leads, and again at every change.")
@global_options
def elect(words: tuple[str, ...], listen: bool) -> None:
    """Stand in an election with VALUE, print the key when elected, and lead until told to stop.

    \b
    Examples:
      raftctl elect /elections/scheduler 10.0.0.1
      raftctl elect -l /elections/scheduler
    """
    if len(words) not in (1, 2):
        message = "elect takes one election name argument and an optional proposal argument"
        raise Failure(message, BAD_ARGUMENTS)
    if len(words) == 1 and not listen:
        raise Failure("no proposal argument but -l not set", BAD_ARGUMENTS)
    if len(words) == 2 and listen:
        raise Failure("proposal given but -l is set", BAD_ARGUMENTS)
    printer = session().printer().able("range")
    name, *value = map(os.fsencode, words)
    client = session().async_client()
    asyncio.run(_observe(client, name, printer) if listen else _campaign(client, name, value[0], printer))


async def _campaign(client: "AsyncClient", name: bytes, value: bytes, printer: Printer) -> None:
    stop = Stop()
    async with client, client.election(name) as election:
        await stop.unless(election.campaign(value))
        printer.range(await client.range(election.key))
        await first(stop.asked, election.lease.lost)
        if not stop.asked.is_set():
            raise Failure("elect: session expired")


async def _observe(client: "AsyncClient", name: bytes, printer: Printer) -> None:
    from raftkv.pb import rpc_pb2

    stop = Stop()

    async def show() -> None:
        async for told in client.election(name).observe():
            printer.range(rpc_pb2.RangeResponse(header=told.header, kvs=[told.kv]))

    async with client:
        with contextlib.suppress(asyncio.CancelledError):
            showing = asyncio.ensure_future(show())
            await first(showing, stop.asked)
            showing.cancel()
            await showing
