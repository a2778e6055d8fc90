"""Noticing that a client of HTTP/1.1 went away while it waits for the next line.

The host tells that only of HTTP/2; over HTTP/1.1 it finds out when it writes, and a watch may have nothing to write for
days. On Linux the kernel's table of connections says whose other end has closed; elsewhere nothing is noticed earlier.
"""

import asyncio
import socket
import struct
from collections.abc import Iterable

Address = tuple[str, int]

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_ESTABLISHED = "01"
_MAPPED = b"\0" * 10 + b"\xff\xff"


class Hangups:
    """Waits for clients to go away; one look at the table, now and then, serves all of them."""

    def __init__(self, interval_seconds: float = 5.0) -> None:
        """`interval_seconds` is how long it may take to notice."""
        self._interval_seconds = interval_seconds
        self._waiting: dict[asyncio.Future[None], Address] = {}
        self._watching: asyncio.Task[None] | None = None

    async def wait(self, client: Address) -> None:
        """Return when the connection of this client is no longer open at both ends."""
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[gone] = client
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        try:
            await gone
        finally:
            del self._waiting[gone]

    async def _watch(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(self._interval_seconds)
                open_ones = await asyncio.to_thread(_established)
                for gone, client in tuple(self._waiting.items()):
                    if open_ones is not None and open_ones.isdisjoint(_entries(client)) and not gone.done():
                        gone.set_result(None)
        finally:
            self._watching = None


def _established() -> set[str] | None:
    """The other ends of all connections that are open at both ends; None where there is no table."""
    found: set[str] | None = None
    for path in _TABLES:
        try:
            with open(path, encoding="ascii") as table:
                rows = [line.split() for line in table]
        except OSError:
            continue
        found = (found or set()) | {row[2] for row in rows[1:] if row[3] == _ESTABLISHED}
    return found


def _entries(client: Address) -> Iterable[str]:
    """How the tables write an address: words of four bytes, in the order of this machine, in hexadecimal."""
    host, port = client
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    packed = socket.inet_pton(family, host.partition("%")[0])
    forms = [packed] if family == socket.AF_INET6 else [packed, _MAPPED + packed]
    if packed.startswith(_MAPPED):
        forms.append(packed.removeprefix(_MAPPED))
    for form in forms:
        words = struct.unpack(f"={len(form) // 4}I", form)
        yield "".join(f"{word:08X}" for word in words) + f":{port:04X}"
