"""What `raftctl lock` does: hold a lock, alone or while a command runs."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.raftctl import golang
from cli.raftctl.failure import Failure
from cli.raftctl.printers import Printer
from cli.raftctl.stopping import Stop, first

if TYPE_CHECKING:
    from raftkv.client import AsyncClient, AsyncLock

_EXPIRED = "session expired"


def lock(client: "AsyncClient", name: str, command: Sequence[str], ttl: int, printer: Printer) -> None:
    """Hold the lock until told to stop or, with a command, until that ends.

    Raises:
        Failure: the lock was lost, or the command failed.
    """
    asyncio.run(_lock(client, name, command, ttl, printer))


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
    sys.stdout.flush()
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
