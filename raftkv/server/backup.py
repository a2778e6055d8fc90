"""A store as a stream of bytes for whoever backs it up: LMDB's file, then the SHA-256 of it."""

import hashlib
import os
import tempfile
from typing import BinaryIO

from raftkv.mvcc import Backend

SENDING = "snapshot.sending"
"""Directory for copies, within the data directory."""
_FILE = "data.mdb"


class Backup:
    """A copy of a store, in a file that has no name any more: nothing is left of it, whatever happens."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.left_bytes = os.fstat(file.fileno()).st_size
        """What has not been read yet, without the hash."""

    def read(self, size: int) -> bytes:
        """Read the next bytes. Blocks.

        Raises:
            OSError: the disk refuses, or the file is shorter than it was.
        """
        data = self._file.read(min(size, self.left_bytes))
        if not data:
            raise OSError("the copy of the store has become shorter")
        self.left_bytes -= len(data)
        self._digest.update(data)
        return data

    def digest(self) -> bytes:
        """SHA-256 of what was read."""
        return self._digest.digest()

    def close(self) -> None:
        """Give the space back."""
        self._file.close()


def copy_store(backend: Backend, scratch: str) -> Backup:
    """Copy what the store holds durably, by way of a directory below `scratch`. Blocks.

    Raises:
        OSError, lmdb.Error: there is no space, for example.
    """
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="backup-", dir=scratch) as directory:
        backend.copy_to(directory)
        return Backup(open(os.path.join(directory, _FILE), "rb"))
