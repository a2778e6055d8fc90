"""Where namespaces are not permitted: TCP proxies on loopback before each member's ports.

Who calls is found by the process that owns the other end of a connection. A direction that is cut is not read any more:
as with lost packets nothing arrives, nobody is told, and it goes on where it stopped when the fault ends.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.partition.namespaces import CLIENTS
from tests.support.processes import Process, free_ports

_READ_BYTES = 1 << 16


class Proxies:
    """A proxy for both ports of each member, in a thread of its own."""

    kind = "proxies, for want of namespaces"

    def __init__(self, size: int) -> None:
        self._ports = free_ports(4 * size)
        self._size = size
        self._members: list[Process] = []
        self._cut: set[tuple[int, int]] = set()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def members(self, directory: Path, *flags: str) -> list[Process]:
        """Members that know each other by their proxies."""
        size = self._size
        clients, peers, outer_clients, outer_peers = (
            self._ports[part * size : part * size + size] for part in range(4)
        )
        initial = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(outer_peers))
        for number in range(size):
            member = Process(f"m{number}", directory, clients[number], peers[number], initial, *flags)
            member.endpoint = f"127.0.0.1:{outer_clients[number]}"
            member.peer_url = f"http://127.0.0.1:{outer_peers[number]}"
            member.set_flag("--advertise-client-urls", f"http://{member.endpoint}")
            member.set_flag("--initial-advertise-peer-urls", member.peer_url)
            self._members.append(member)
            self._on_loop(self._listen(number, outer_clients[number], clients[number]))
            self._on_loop(self._listen(number, outer_peers[number], peers[number]))
        return self._members

    def _on_loop(self, coroutine: "Awaitable[None]") -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)  # type: ignore[arg-type]

    async def _listen(self, number: int, outer: int, inner: int) -> None:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._serve(number, inner, reader, writer)
            writer.transport.abort()

        self._servers.append(await asyncio.start_server(accepted, "127.0.0.1", outer))

    async def _serve(self, number: int, inner: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = self._owner(writer.get_extra_info("peername")[1])
        # A handshake needs both directions.
        await self._passable(source, number)
        await self._passable(number, source)
        there, back = await asyncio.open_connection("127.0.0.1", inner)
        pumps = [
            asyncio.ensure_future(self._pump(reader, back, (source, number))),
            asyncio.ensure_future(self._pump(there, writer, (number, source))),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            back.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: tuple[int, int]) -> None:
        while data := await reader.read(_READ_BYTES):
            await self._passable(*way)
            writer.write(data)
            await writer.drain()
        # That a connection ended is told by a packet, too.
        await self._passable(*way)

    async def _passable(self, source: int, target: int) -> None:
        while (source, target) in self._cut:
            await self._changed.wait()

    def _owner(self, port: int) -> int:
        """The number of the member whose connection has this local port."""
        inode = _inode(port)
        for number, member in enumerate(self._members):
            with contextlib.suppress(OSError):
                for name in os.listdir(f"/proc/{member.pid}/fd"):
                    with contextlib.suppress(OSError):
                        if os.readlink(f"/proc/{member.pid}/fd/{name}") == f"socket:[{inode}]":
                            return number
        return CLIENTS

    def cut(self, source: int, target: int) -> None:
        """Let nothing pass from source to target; the other direction is not touched."""
        self._call(lambda: self._cut.add((source, target)))

    def heal(self) -> None:
        """Let everything pass."""
        self._call(self._heal)

    def _heal(self) -> None:
        self._cut.clear()
        self._changed.set()
        self._changed.clear()

    def _call(self, change: Callable[[], None]) -> None:
        async def changing() -> None:
            change()

        self._on_loop(changing())

    def close(self) -> None:
        """End all connections and listeners."""
        self._on_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _inode(port: int) -> str:
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}"):
            return fields[9]
    return ""
