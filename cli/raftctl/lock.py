"""lock: hold a lock until told to stop, or while a command runs."""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from cli.raftctl import flags, golang
from cli.raftctl.failure import BAD_ARGUMENTS, Failure
from cli.raftctl.flags import Command
from cli.raftctl.printers import Printer
from cli.raftctl.session import global_options, session
from cli.raftctl.stopping import Stop, first

if TYPE_CHECKING:
    from raftkv.client import AsyncClient, AsyncLock

_EXPIRED = "session expired"


@click.command("lock", cls=Command)
@click.argument("words", nargs=-1, metavar="NAME [-- COMMAND...]")
@click.option("--ttl", type=flags.INT, default=10, help="Seconds until others get it if we vanish.  [default: 10]")
@global_options
def lock(words: tuple[str, ...], ttl: int) -> None:
    """Wait for a lock and hold it until told to stop, or while COMMAND runs, and exit as that did.

    It is released however raftctl ends; if that is not given the time, when --ttl has passed. COMMAND has
    ETCD_LOCK_KEY and ETCD_LOCK_REV in its environment. It is told to terminate when the lock is lost, or we are.

    \b
    Examples:
      raftctl lock /locks/backup
      raftctl lock /locks/backup -- sh -c 'pg_dump shop > shop.sql'
    """
    if not words:
        raise Failure("lock takes a lock name argument and an optional command to execute", BAD_ARGUMENTS)
    printer = session().printer()
    if len(words) == 1:
        printer.able("range")
    asyncio.run(_lock(session().async_client(), words[0], words[1:], ttl, printer))


async def _lock(client: "AsyncClient", name: str, command: Sequence[str], ttl: int, printer: Printer) -> None:
    stop = Stop()
    async with client, contextlib.AsyncExitStack() as stack:
        held = await stop.unless(stack.enter_async_context(client.lock(os.fsencode(name), ttl=ttl)))
        if command:
            await _run(command, held, stop)
        else:
            await _hold(client, held, stop, printer)


async def _hold(client: "AsyncClient", held: "AsyncLock", stop: Stop, printer: Printer) -> None:
    response = await client.range(held.key)
    if not response.kvs:
        raise Failure("lock lost on init")
    printer.range(response)
    await first(stop.asked, held.lost)
    if not stop.asked.is_set():
        raise Failure(_EXPIRED)


async def _run(command: Sequence[str], held: "AsyncLock", stop: Stop) -> None:
    variables = {"ETCD_LOCK_KEY": os.fsdecode(held.key), "ETCD_LOCK_REV": str(held.revision)}
    try:
        process = await asyncio.create_subprocess_exec(*command, env=os.environ | variables)
    except FileNotFoundError as error:
        problem = f"exec: {golang.quote(os.fsencode(command[0]))}: executable file not found in $PATH"
        raise Failure(problem) from error
    except OSError as error:
        raise Failure(f"fork/exec {command[0]}: {error.strerror}") from error
    ended = asyncio.ensure_future(process.wait())
    await first(ended, stop.terminated, held.lost)
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    status = await ended
    if held.lost.is_set():
        raise Failure(_EXPIRED)
    if status < 0:
        raise Failure(f"signal: {-status}", 128 - status)
    if status:
        raise Failure(f"exit status {status}", status)
