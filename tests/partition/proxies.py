"""Where namespaces are not permitted, and for links that are slow: TCP proxies on loopback before each member's ports.

Who calls is found by the process that owns the other end of a connection. A direction that is cut is not read any more:
as with lost packets nothing arrives, nobody is told, and it goes on where it stopped when the fault ends.
"""

import asyncio
import contextlib
import os
import random
import socket
import struct
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.partition.namespaces import CLIENTS
from tests.support.processes import Process, free_ports

_READ_BYTES = 1 << 16
_SOCK_DIAG, _BY_FAMILY = 4, 20


class Proxies:
    """A proxy for both ports of each member and of a newcomer, in a thread of its own."""

    def __init__(self, size: int, kind: str) -> None:
        self._kind = kind
        self._ports = free_ports(4 * (size + 1))
        self._size = size
        self._delay_seconds = self._broken = 0.0
        self._rng = random.Random(size)
        self._members: list[Process] = []
        self._cut: set[tuple[int, int]] = set()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def kind(self) -> str:
        """What every line of the output says of the network."""
        return self._kind

    def _before_peers(self, number: int, port: int) -> int:
        """The port to which calls of other members go on; `port` is the member's own."""
        return port

    def members(self, directory: Path, *flags: str) -> list[Process]:
        """Members that know each other by their proxies; the last one is no member yet."""
        size = self._size + 1
        clients, peers, outer_clients, outer_peers = (
            self._ports[part * size : part * size + size] for part in range(4)
        )
        initial = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(outer_peers[:-1]))
        for number in range(size):
            member = Process(f"m{number}", directory, clients[number], peers[number], initial, *flags)
            member.endpoint = f"127.0.0.1:{outer_clients[number]}"
            member.peer_url = f"http://127.0.0.1:{outer_peers[number]}"
            member.set_flag("--advertise-client-urls", f"http://{member.endpoint}")
            member.set_flag("--initial-advertise-peer-urls", member.peer_url)
            self._members.append(member)
            inner = self._before_peers(number, peers[number])
            self._on_loop(self._listen(number, outer_clients[number], clients[number], between_members=False))
            self._on_loop(self._listen(number, outer_peers[number], inner, between_members=True))
        return self._members

    def _on_loop(self, coroutine: "Awaitable[None]") -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)  # type: ignore[arg-type]

    async def _listen(self, number: int, outer: int, inner: int, *, between_members: bool) -> None:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            with contextlib.suppress(OSError, asyncio.CancelledError):
                # To find out takes a while, and nobody but clients calls the other port.
                source = self._owner(*_ports(writer)) if between_members else CLIENTS
                await self._serve(source, number, inner, reader, writer)
            writer.transport.abort()

        self._servers.append(await asyncio.start_server(accepted, "127.0.0.1", outer))

    async def _serve(
        self, source: int, number: int, inner: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
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
            if self._delay_seconds:
                await asyncio.sleep(self._rng.uniform(0, 2 * self._delay_seconds))
            await self._passable(*way)
            if self._rng.random() < self._broken:
                # Half a frame arrives, then nothing: the connection is reset.
                writer.write(data[: len(data) // 2])
                return
            writer.write(data)
            await writer.drain()
        # That a connection ended is told by a packet, too.
        await self._passable(*way)

    async def _passable(self, source: int, target: int) -> None:
        while (source, target) in self._cut:
            await self._changed.wait()

    def _owner(self, port: int, target: int) -> int:
        """The number of the member whose connection goes from this port to that one."""
        inode = _inode(port, target)
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

    def lose(self, share: float) -> None:
        """Break connections in the middle of what they carry: a stream that loses something ends."""
        self._broken = share

    def delay(self, seconds: float) -> None:
        """Let what is sent take this long on average, and no two pieces equally long."""
        self._delay_seconds = seconds

    def heal(self) -> None:
        """Cut nothing any more."""
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


def _ports(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """The ports from which and to which a connection goes."""
    return writer.get_extra_info("peername")[1], writer.get_extra_info("sockname")[1]


_REQUEST = struct.Struct("=IHHII BBBBI")
_PORTS = struct.Struct("!HH")
_HEADER_BYTES, _INODE_OFFSET = 16, 68


def _inode(source: int, target: int) -> int:
    """The socket on loopback that is connected from this port to that one: asked of the kernel (sock_diag(7)).

    /proc/net/tcp says it, too, and takes seconds where many connections have ended lately.
    """
    loopback = socket.inet_aton("127.0.0.1") + bytes(12)
    identity = _PORTS.pack(source, target) + loopback * 2 + bytes(4) + b"\xff" * 8
    size = _REQUEST.size + len(identity)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.settimeout(5.0)
        head = _REQUEST.pack(size, _BY_FAMILY, 1, 0, 0, socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
        kernel.send(head + identity)
        answer = kernel.recv(4096)
    if len(answer) < _HEADER_BYTES + _INODE_OFFSET + 4:
        return 0
    return int.from_bytes(answer[_HEADER_BYTES + _INODE_OFFSET :][:4], sys.byteorder)
