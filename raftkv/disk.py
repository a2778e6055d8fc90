"""The disk port: every file access of the log goes through it, so that a simulated disk can take its place.

Only what durability needs: nothing here caches, retries or hides an error.
"""

import os
import time
from typing import Protocol

from raftkv.histogram import Histogram


class File(Protocol):
    """An open file; offsets and sizes in bytes. Every method raises OSError as the system does."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`; durable only after `sync`."""

    def sync(self) -> None:
        """Make what was written durable, with the size needed to read it back (fdatasync)."""

    def close(self) -> None: ...


class Disk(Protocol):
    """Files by path. A new name, a rename and a removal are durable only after `sync_directory`."""

    def create(self, path: str, size: int) -> File:
        """Create or empty a file of `size` zero bytes, allocated in advance."""

    def open(self, path: str) -> File: ...

    def read(self, path: str) -> bytes: ...

    def rename(self, source: str, target: str) -> None: ...

    def remove(self, path: str) -> None: ...

    def list(self, directory: str) -> list[str]:
        """Names in a directory, sorted; empty when there is no such directory."""

    def make_directory(self, path: str) -> None:
        """Make a directory where it is missing, and those above it, durably."""

    def sync_directory(self, path: str) -> None: ...


class OsFile:
    """A file of the operating system."""

    __slots__ = ("_fd", "_times")

    def __init__(self, fd: int, times: "DiskTimes") -> None:
        self._fd = fd
        self._times = times

    def write(self, offset: int, data: bytes) -> None:
        self._times.written_bytes += len(data)
        started = time.perf_counter()
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            offset += written
            view = view[written:]
        self._times.writes.observe(time.perf_counter() - started)

    def sync(self) -> None:
        started = time.perf_counter()
        os.fdatasync(self._fd)
        self._times.syncs.observe(time.perf_counter() - started)

    def close(self) -> None:
        os.close(self._fd)


class DiskTimes:
    """How long writes and syncs took, and how much was written; one thread at a time writes."""

    def __init__(self) -> None:
        self.syncs = Histogram()
        self.writes = Histogram()
        self.written_bytes = 0


class OsDisk:
    """The disk of the operating system."""

    def __init__(self) -> None:
        self.times = DiskTimes()

    def create(self, path: str, size: int) -> File:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            # Falls back to writing where the file system cannot allocate (glibc).
            os.posix_fallocate(fd, 0, size)
        except BaseException:
            os.close(fd)
            raise
        return OsFile(fd, self.times)

    def open(self, path: str) -> File:
        return OsFile(os.open(path, os.O_RDWR | os.O_CLOEXEC), self.times)

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def remove(self, path: str) -> None:
        os.remove(path)

    def list(self, directory: str) -> list[str]:
        try:
            return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []

    def make_directory(self, path: str) -> None:
        parent = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(parent):
            self.make_directory(parent)
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)
        # Also when it was there: whoever made it may have died before this.
        self.sync_directory(parent)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def free_bytes(path: str) -> int:
    """Space that this user may still take on the file system of a path."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
