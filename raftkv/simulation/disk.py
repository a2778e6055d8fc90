"""A disk in memory that does what disks do at the worst moment: the `Disk` port with faults, seeded.

What is promised to a program is only what it synced. At a power cut each 512-byte sector of what was written since
survives or not, by itself and in any order; so does each change of a directory, except that a rename is one change.
When only the process dies, the system's cache keeps everything. A failed fsync is reported once: afterwards the cache
is clean, and what it did not write back is on no disk, though reads still show it (as Linux does it).
"""

import errno
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable

SECTOR_BYTES = 512


class PowerCut(Exception):
    """The machine went dark inside a disk operation. Not an OSError: no program can handle it."""


class Inode:
    """A file's bytes as the cache has them and as the disk has them."""

    def __init__(self, size: int) -> None:
        self.cached = bytearray(size)
        self.durable = bytearray()
        self.dirty: set[int] = set()

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self.cached):
            self.cached.extend(bytes(end - len(self.cached)))
        self.cached[offset:end] = data
        if data:
            self.dirty.update(range(offset // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1))

    def write_back(self, sectors: Iterable[int]) -> None:
        """Let some sectors reach the disk, with the file's size."""
        if len(self.durable) != len(self.cached):
            self.durable.extend(bytes(len(self.cached) - len(self.durable)))
        for sector in sectors:
            place = slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
            self.durable[place] = self.cached[place]


class FaultyFile:
    """An open file of one life of the process."""

    def __init__(self, disk: "FaultyDisk", inode: Inode, path: str) -> None:
        self._disk = disk
        self._inode = inode
        self._path = path
        self._life = disk.life
        self._closed = False

    def write(self, offset: int, data: bytes) -> None:
        self._check()
        # A failing write, or one that the power cut hits, may have done a part of its work.
        done = self._disk.rng.randrange(len(data) + 1)
        self._disk.perform("write", self._path, lambda: self._inode.write(offset, data[:done]))
        self._inode.write(offset, data)

    def sync(self) -> None:
        self._check()
        self._disk.perform("sync", self._path, self._fail_sync)
        self._inode.write_back(self._inode.dirty)
        self._inode.dirty.clear()

    def _fail_sync(self) -> None:
        self._inode.write_back(self._disk.survivors(self._inode))
        self._inode.dirty.clear()

    def close(self) -> None:
        self._closed = True

    def _check(self) -> None:
        if self._closed or self._life != self._disk.life:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self._path)


class FaultyDisk:
    """Files in memory; faults are ordered (`fail`, `cut_power`), damage is done (`crash`, `kill`, `flip`).

    Invariants:
    1. What was synced is on the disk, until `flip`.
    2. Two disks with equal seeds and equal calls hold equal bytes.
    """

    def __init__(self, seed: int | str = 0) -> None:
        self.rng = random.Random(f"{seed}/disk")
        self.life = 0
        self.performed: Counter[str] = Counter()
        self._cached: dict[str, Inode] = {}
        self._durable: dict[str, Inode] = {}
        self._changes: list[dict[str, Inode | None]] = []
        self._faults: dict[str, tuple[int, int]] = {}
        self._operations_left: int | None = None
        self.failed = False
        """Whether the last operation of this life failed as ordered."""

    # The port

    def create(self, path: str, size: int) -> FaultyFile:
        self.perform("create", path)
        self._change({path: Inode(size)})
        return FaultyFile(self, self._cached[path], path)

    def open(self, path: str) -> FaultyFile:
        self.perform("open", path)
        return FaultyFile(self, self._inode(path), path)

    def read(self, path: str) -> bytes:
        self.perform("read", path)
        return bytes(self._inode(path).cached)

    def rename(self, source: str, target: str) -> None:
        self.perform("rename", source)
        self._change({target: self._inode(source), source: None})

    def remove(self, path: str) -> None:
        self.perform("remove", path)
        self._inode(path)
        self._change({path: None})

    def list(self, directory: str) -> list[str]:
        return sorted(os.path.basename(path) for path in self._cached if os.path.dirname(path) == directory)

    def make_directory(self, path: str) -> None:
        """Directories are where their files are: nothing to do, and nothing to lose."""

    def sync_directory(self, path: str) -> None:
        self.perform("sync_directory", path)
        for change in self._changes:
            _apply(change, self._durable)
        self._changes.clear()

    # What a test does to it

    def fail(self, operation: str, error: int, *, after: int = 0) -> None:
        """Let an operation fail once with this errno, when it has gone well `after` more times."""
        self._faults[operation] = (after, error)

    def cut_power(self, *, after: int) -> None:
        """Let the power fail inside the operation that follows `after` more of any kind: it raises `PowerCut`."""
        self._operations_left = after

    def kill(self) -> None:
        """The process dies, the machine runs on: open files are gone, the cache stays. Ordered faults are forgotten."""
        self.life += 1
        self.failed = False
        self.calm()

    def crash(self) -> None:
        """The machine dies: of what was not synced, any part is lost."""
        self.kill()
        for change in self._changes:
            if self.rng.random() < 0.5:
                _apply(change, self._durable)
        self._changes.clear()
        self._cached = dict(self._durable)
        for inode in self._cached.values():
            if inode.dirty or self.rng.random() < 0.5:
                inode.write_back(self.survivors(inode))
            inode.dirty.clear()
            inode.cached = bytearray(inode.durable)

    def flip(self, path: str, offset: int, bit: int) -> None:
        """Flip one bit, on the disk and in the cache; again, and it is as before."""
        for image in (self._cached[path].cached, self._cached[path].durable):
            if offset < len(image):
                image[offset] ^= 1 << bit

    def flip_somewhere(self, rng: random.Random) -> tuple[str, int, int]:
        """Flip a bit in the first half of what a file holds; where, for `flip`.

        A flip in the marker of the last group looks like a torn write, and no disk format can tell the two apart.
        """
        path = rng.choice(sorted(self._cached))
        used = len(bytes(self._cached[path].cached).rstrip(b"\0"))
        place = path, rng.randrange(max(1, used // 2)), rng.randrange(8)
        self.flip(*place)
        return place

    def calm(self) -> None:
        """Forget ordered faults."""
        self._faults.clear()
        self._operations_left = None

    def restore(self, path: str, image: bytes) -> None:
        """Give a file these bytes, durably, as a backup would."""
        inode = self._cached[path]
        inode.dirty.clear()
        inode.cached, inode.durable = bytearray(image), bytearray(image)

    # For the files

    def perform(self, operation: str, path: str, half: Callable[[], None] = lambda: None) -> None:
        """Count an operation, and fail as ordered; `half` is what it may still do before it fails."""
        self.performed[operation] += 1
        self.failed = False
        if self._operations_left is not None:
            self._operations_left -= 1
            if self._operations_left < 0:
                half()
                raise PowerCut(f"{operation} of {path}")
        after, error = self._faults.get(operation, (-1, 0))
        if after > 0:
            self._faults[operation] = (after - 1, error)
        elif after == 0:
            del self._faults[operation]
            self.failed = True
            half()
            raise OSError(error, os.strerror(error), path)

    def survivors(self, inode: Inode) -> Iterable[int]:
        """Draw which unsynced sectors of a file reach the disk: none, all, or any."""
        chance = self.rng.choice((0.0, 0.5, 0.9, 1.0))
        return [sector for sector in sorted(inode.dirty) if self.rng.random() < chance]

    def _inode(self, path: str) -> Inode:
        try:
            return self._cached[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def _change(self, change: dict[str, Inode | None]) -> None:
        _apply(change, self._cached)
        self._changes.append(change)


def _apply(change: dict[str, Inode | None], entries: dict[str, Inode]) -> None:
    for path, inode in change.items():
        if inode is None:
            entries.pop(path, None)
        else:
            entries[path] = inode
