"""Stores as files: copied to be sent, and put aside when they arrive until they take the place of our own.

    snapshot.sending/<peer>/    a copy; its file is unlinked as soon as it is open
    snapshot.receiving/         what arrives
    snapshot/                   arrived whole and synced: the store to be, once the log says so
    store/                      the store

The order of an installation is: put aside, recorded in the log, moved into place. A start finds out how far it came. If
the log begins behind what the store has applied, the store put aside is the one the log speaks of, and is moved into
place. Otherwise nothing recorded it, and it is removed. The move is one rename, so there is a store at any moment.
"""

import os
import shutil
from dataclasses import dataclass

from raftkv.disk import OsDisk
from raftkv.failpoints import failpoint
from raftkv.lease import LeaseStore
from raftkv.mvcc import Backend, LmdbBackend, Store
from raftkv.raft import InstallSnapshot, NodeId, SnapshotMetadata
from raftkv.server.apply import applied_position
from raftkv.server.backup import SENDING
from raftkv.server.membership import Membership

RECEIVING = "snapshot.receiving"
ASIDE = "snapshot"
_FILE = "data.mdb"
_LOCK = "lock.mdb"


class Copy:
    """A store's file, open for reading; nothing of it stays on disk when it is closed."""

    def __init__(self, fd: int, metadata: SnapshotMetadata) -> None:
        self._fd = fd
        self.metadata = metadata
        self.size_bytes = os.fstat(fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Read some bytes. Blocks.

        Raises:
            OSError: the file ends before.
        """
        failpoint("snapshot-sent-in-part" if offset else "snapshot-sending")
        data = os.pread(self._fd, length, offset)
        if not data:
            raise OSError(f"the copy of the store ends at {offset}")
        return data

    def close(self) -> None:
        os.close(self._fd)


def copy_store(backend: Backend, data_dir: str, peer: NodeId) -> Copy:
    """Copy what the store holds durably. Blocks, for as long as writing the store takes.

    Raises:
        OSError, lmdb.Error: there is no space, for example.
    """
    directory = os.path.join(data_dir, SENDING, f"{peer:x}")
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory, mode=0o700)
    try:
        backend.copy_to(directory)
        copied = LmdbBackend(directory)
        try:
            metadata = metadata_of(copied)
        finally:
            copied.close()
        failpoint("snapshot-copied")
        return Copy(os.open(os.path.join(directory, _FILE), os.O_RDONLY | os.O_CLOEXEC), metadata)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def metadata_of(backend: Backend) -> SnapshotMetadata:
    """The point in the log that a store stands for."""
    index, term = applied_position(backend)
    return SnapshotMetadata(index=index, term=term, conf_state=Membership.stored_conf_state(backend))


@dataclass(slots=True)
class Loaded:
    """A store that arrived, aside on disk and ready in memory."""

    store: Store
    leases: LeaseStore
    data_dir: str

    def move_into_place(self) -> None:
        """Let it take the place of the store on disk, when the log says so durably. Blocks."""
        failpoint("snapshot-recorded")
        move_into_place(self.data_dir)
        failpoint("snapshot-in-place")


class Arrival:
    """What arrives, on its way to be aside. Every method blocks, and they are called one at a time."""

    def __init__(self, data_dir: str, message: InstallSnapshot) -> None:
        self.message = message
        self._data_dir = data_dir
        self._directory = os.path.join(data_dir, RECEIVING)
        self._fd: int | None = None
        self._done = False

    def write(self, data: bytes) -> None:
        """Take the next bytes."""
        if self._fd is None:
            shutil.rmtree(self._directory, ignore_errors=True)
            os.mkdir(self._directory, 0o700)
            path = os.path.join(self._directory, _FILE)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        failpoint("snapshot-receiving")

    def keep(self) -> Loaded:
        """Put what has arrived aside, durably, and load it.

        Raises:
            ValueError: it is not what its message says.
        """
        if self._fd is None:
            raise ValueError("the snapshot is empty")
        os.fsync(self._fd)
        self._close()
        disk = OsDisk()
        disk.sync_directory(self._directory)
        aside = os.path.join(self._data_dir, ASIDE)
        shutil.rmtree(aside, ignore_errors=True)
        failpoint("snapshot-received")
        disk.rename(self._directory, aside)
        disk.sync_directory(self._data_dir)
        failpoint("snapshot-aside")
        backend = LmdbBackend(aside)
        try:
            if metadata_of(backend) != self.message.metadata:
                raise ValueError(f"the snapshot is of {metadata_of(backend)}, not of {self.message.metadata}")
            store = Store(backend)
            loaded = Loaded(store, LeaseStore(store), self._data_dir)
        except BaseException:
            backend.close()
            raise
        self._done = True
        return loaded

    def discard(self) -> None:
        """Remove what has arrived, unless it is kept."""
        self._close()
        if not self._done:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def move_into_place(data_dir: str) -> None:
    """Replace the store by the one put aside. Blocks.

    The environment may be open: it goes on under its new name.
    """
    disk = OsDisk()
    aside, store = os.path.join(data_dir, ASIDE), os.path.join(data_dir, "store")
    disk.rename(os.path.join(aside, _FILE), os.path.join(store, _FILE))
    failpoint("snapshot-moved")
    disk.sync_directory(store)
    disk.sync_directory(aside)
    if os.path.exists(os.path.join(aside, _LOCK)):
        disk.rename(os.path.join(aside, _LOCK), os.path.join(store, _LOCK))
    shutil.rmtree(aside, ignore_errors=True)


def settle_at_start(data_dir: str, recorded_index: int) -> bool:
    """Finish or undo what the last process left; whether a store was moved into place.

    `recorded_index` is where the log begins.

    Raises:
        OSError, lmdb.Error: the disk refuses, or a store cannot be read.
    """
    for name in (SENDING, RECEIVING):
        shutil.rmtree(os.path.join(data_dir, name), ignore_errors=True)
    aside = os.path.join(data_dir, ASIDE)
    if not os.path.isdir(aside):
        return False
    wanted = os.path.exists(os.path.join(aside, _FILE)) and (
        _applied(os.path.join(data_dir, "store")) < recorded_index == _applied(aside)
    )
    if wanted:
        move_into_place(data_dir)
    shutil.rmtree(aside, ignore_errors=True)
    return wanted


def _applied(directory: str) -> int:
    backend = LmdbBackend(directory)
    try:
        return applied_position(backend)[0]
    finally:
        backend.close()
