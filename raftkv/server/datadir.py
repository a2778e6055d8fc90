"""The data directory: who may use it, and what is said when it cannot be used.

The lock is an flock on the directory itself: it vanishes with the process and leaves nothing behind. A start that is
refused leaves the disk as it was: what this process created is removed again, unless a log exists by then.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile

from raftkv.disk import OsDisk

_IGNORED = frozenset({"lost+found"})
"""What a freshly made file system holds."""


_FIRST_BYTES = 256 << 10
"""More than the files of a first start need before they are written as others are, where no space is an error."""


class StartError(Exception):
    """The member cannot start; the message is one line that says what is wrong and what to do."""


class DataDir:
    """A member's directory. `wal` and `store` are the paths of its two parts.

    Invariant: between `lock` and `close` no other process that asks for the lock uses the directory.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.wal = os.path.join(self.path, "wal")
        self.store = os.path.join(self.path, "store")
        self._fd: int | None = None
        self._created: list[str] = []
        self._was_empty = False

    def lock(self) -> None:
        """Create the directory where it is missing, and keep every other process out.

        Raises:
            StartError: it is locked, foreign, not a directory or not writable. Nothing was changed.
        """
        try:
            self._make()
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._flock(self._fd)
            self._check_contents()
            self._try_to_write()
        except OSError as error:
            self.close()
            raise disk_error(error, self.path) from error
        except StartError:
            self.close()
            raise

    def close(self) -> None:
        """Give the directory back; remove what this process created if no log came to be. Safe to call twice."""
        if self._fd is not None:
            if self._was_empty and not self.has_log():
                self._empty()
            self._remove_created()
            os.close(self._fd)
            self._fd = None
        else:
            self._remove_created()

    @property
    def was_empty(self) -> bool:
        """Whether nothing was in it when it was locked."""
        return self._was_empty

    def has_log(self) -> bool:
        """Whether a member's log was ever created here."""
        try:
            return any(name.endswith(".wal") for name in os.listdir(self.wal))
        except FileNotFoundError:
            return False

    def _make(self) -> None:
        missing = []
        path = self.path
        while not os.path.lexists(path):
            missing.append(path)
            path = os.path.dirname(path)
        for path in reversed(missing):
            os.mkdir(path, 0o700)
            self._created.append(path)
            # A parent that may be written but not read cannot be synced.
            with contextlib.suppress(PermissionError):
                OsDisk().sync_directory(os.path.dirname(path))

    def _flock(self, fd: int) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = lock_holder(fd)
            who = f"process {holder}" if holder else "another process"
            raise StartError(f"{self.path} is in use by {who}: stop it, or choose another --data-dir") from None

    def _check_contents(self) -> None:
        names = sorted(set(os.listdir(self.path)) - _IGNORED)
        self._was_empty = not names
        if names and not {"wal", "store"} & set(names):
            what = "holds etcd's data" if "member" in names else f"holds other files ({names[0]})"
            raise StartError(f"{self.path} {what}, not raftkv's: choose an empty or a new --data-dir")

    def _try_to_write(self) -> None:
        """Access rights do not tell about read-only and full file systems."""
        try:
            with tempfile.TemporaryFile(dir=self.path) as file:
                if self._was_empty:
                    # A full disk kills with SIGBUS whoever maps a new file, as LMDB does with its lock. A later start
                    # needs no space: it is there to make some.
                    os.posix_fallocate(file.fileno(), 0, _FIRST_BYTES)
        except OSError as error:
            # The file's name is nobody's business.
            error.filename = self.path
            raise

    def _empty(self) -> None:
        for part in (self.wal, self.store, os.path.join(self.path, "fixtures")):
            shutil.rmtree(part, ignore_errors=True)
        # It is seldom there, and a read-only file system says so also of what is not there.
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.path, "heard"))

    def _remove_created(self) -> None:
        for path in reversed(self._created):
            try:
                os.rmdir(path)
            except OSError:
                # In use by now.
                break
        self._created.clear()


def disk_error(error: OSError, path: str) -> StartError:
    """Say in one line what the system refused and what to do about it."""
    where = error.filename if isinstance(error.filename, str) else path
    reason = (error.strerror or str(error)).lower()
    remedies = {
        errno.ENOSPC: "free some space, or choose another --data-dir",
        errno.EDQUOT: "raise the quota, or choose another --data-dir",
        errno.EACCES: "give this user the right to write there, or choose another --data-dir",
        errno.EPERM: "give this user the right to write there, or choose another --data-dir",
        errno.EROFS: "mount the file system writable, or choose another --data-dir",
        errno.ENOTDIR: "move the file out of the way, or choose another --data-dir",
        errno.EEXIST: "move the file out of the way, or choose another --data-dir",
    }
    remedy = remedies.get(error.errno or 0, "check the disk, or choose another --data-dir")
    return StartError(f"cannot use {where}: {reason}: {remedy}")


def lock_holder(fd: int) -> int | None:
    """Find the process that holds an flock on an open file; None where the system does not tell."""
    status = os.fstat(fd)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as file:
            # "1: FLOCK  ADVISORY  WRITE 4711 fe:01:131075 0 EOF"; waiting ones have "->" in second place.
            for line in file:
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5] == place and int(fields[4]) > 0:
                    return int(fields[4])
    except OSError:
        pass
    return None
