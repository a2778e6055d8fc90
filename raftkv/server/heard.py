"""Whose messages this member has ever taken: durable before the first one is, and never forgotten.

It is what tells a member that starts for the first time from one that lost its data (`raftkv.peer.introduction`). A
file of its own, because it is written before Raft hears anything, at most once per other member in a lifetime: a
line of 16 hexadecimal digits per member, replaced as a whole.
"""

import asyncio
import os
from collections.abc import Iterable

from raftkv.disk import Disk
from raftkv.raft import NodeId
from raftkv.server.datadir import StartError

FILE = "heard"


def note_heard(disk: Disk, directory: str, members: Iterable[NodeId]) -> None:
    """Replace the file of a data directory, durably. Blocks."""
    data = "".join(f"{member:016x}\n" for member in sorted(members)).encode()
    path = os.path.join(directory, FILE)
    file = disk.create(path + ".tmp", len(data))
    try:
        file.write(0, data)
        file.sync()
    finally:
        file.close()
    disk.rename(path + ".tmp", path)
    disk.sync_directory(directory)


class Heard:
    """The members in the file `heard` of a data directory.

    Invariant: a member is in `_noted` before a word of it can count, and in `_durable` before one does.
    """

    def __init__(self, disk: Disk, directory: str) -> None:
        """Read the file; without one nobody was heard.

        Raises:
            StartError: it is damaged.
        """
        self._disk = disk
        self._directory = directory
        self._durable: frozenset[NodeId] = frozenset()
        path = os.path.join(directory, FILE)
        if FILE in disk.list(directory):
            try:
                self._durable = frozenset(int(line, 16) for line in disk.read(path).decode("ascii").split())
            except ValueError as error:
                raise StartError(f"{path} is damaged: restore it, or replace this member") from error
        self._noted = set(self._durable)
        self._writing = asyncio.Lock()

    def __contains__(self, member: NodeId) -> bool:
        return member in self._noted

    async def remember(self, member: NodeId) -> None:
        """Note a member; when this returns it is durable.

        Raises:
            OSError: the disk failed, and the member must stop.
        """
        if member in self._durable:
            return
        self._noted.add(member)
        # The call may be cancelled when its stream ends; a write under way must not then meet the next one.
        await asyncio.shield(asyncio.ensure_future(self._make_durable()))

    async def _make_durable(self) -> None:
        async with self._writing:
            members = frozenset(self._noted)
            if not members <= self._durable:
                await asyncio.to_thread(note_heard, self._disk, self._directory, members)
                self._durable = members
