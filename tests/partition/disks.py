"""Disks that fail: file systems of a member's own, and fsyncs that strace makes slow or lets fail."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

IMAGE_MIB = 1024
SMALL_MIB = 256
_SYNCS = "fsync,fdatasync,sync_file_range,msync"


class NotPermitted(Exception):
    """The system lacks a program or does not let us do it."""


class Target(Protocol):
    """Whose disk it is."""

    @property
    def pid(self) -> int: ...

    def running(self) -> bool: ...


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except OSError as error:
        raise NotPermitted(f"{command[0]}: {error}") from error
    if done.returncode:
        raise NotPermitted(f"{' '.join(command)}: {done.stderr.strip()}")


class Ext4:
    """An ext4 in a file, mounted through a loop device, whose power can be cut.

    What was written and not synced is in the system's cache and not yet in the file, hence not in a copy of it.
    """

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            NotPermitted
        """
        self.place = directory / "ext4"
        self.place.mkdir()
        self._directory = directory
        self._image = self._new_image()
        _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._image))
        self._mount()

    def _new_image(self) -> Path:
        image = self._directory / f"image-{time.monotonic_ns()}"
        with image.open("wb") as file:
            file.truncate(IMAGE_MIB << 20)
        return image

    def _mount(self) -> None:
        # Nothing is written out by time alone: only what was synced survives.
        _run("mount", "-o", "loop,commit=300", str(self._image), str(self.place))

    def copy(self) -> Path:
        """What a power cut at this moment would leave. Whoever writes must stand still."""
        copied = self._directory / f"image-{time.monotonic_ns()}"
        _run("cp", "--sparse=always", str(self._image), str(copied))
        return copied

    def replace(self, image: Path) -> None:
        """Go on with a copy. Whoever wrote must have ended."""
        _run("umount", str(self.place))
        self._image.unlink()
        self._image = image
        self._mount()

    def close(self) -> None:
        """Unmount it, in whatever state it is; the loop device goes with it."""
        subprocess.run(["umount", str(self.place)], capture_output=True, timeout=60, check=False)
        if os.path.ismount(self.place):
            subprocess.run(["umount", "-l", str(self.place)], capture_output=True, timeout=60, check=True)


class Small:
    """A file system in memory that can be filled to the last byte."""

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            NotPermitted
        """
        self.place = directory / "small"
        self.place.mkdir()
        _run("mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "none", str(self.place))

    @property
    def _ballast(self) -> Path:
        return self.place / "ballast"

    def fill(self, left_bytes: int) -> None:
        """Take all space but some bytes."""
        found = os.statvfs(self.place)
        size = found.f_bavail * found.f_frsize - left_bytes
        with contextlib.suppress(OSError), self._ballast.open("ab") as ballast:
            os.posix_fallocate(ballast.fileno(), ballast.tell(), max(1, size))

    def empty(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "-l", str(self.place)], capture_output=True, timeout=60, check=False)


PREFIX = "raftkv-partition-"
"""Directories of this suite are called so, with the process id behind it."""


def remove_leftovers() -> None:
    """Unmount and remove what runs left whose process is gone; their members died with them."""
    mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    for place, pid in re.findall(rf" (\S+/{PREFIX}(\d+)-\S+) ", mounts):
        if not Path(f"/proc/{pid}").exists():
            subprocess.run(["umount", "-l", place], capture_output=True, timeout=60, check=False)
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def syncs(target: Target, does: str) -> Iterator[None]:
    """Let strace do something to each sync of a process, such as `delay_exit=300000` (µs) or `error=EIO`.

    Raises:
        NotPermitted
    """
    if shutil.which("strace") is None:
        raise NotPermitted("no strace")
    inject = [*("-e", f"trace={_SYNCS}"), *("-e", f"inject={_SYNCS}:{does}")]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *inject, "-p", str(target.pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while target.running() and not traced(target.pid):
            if tracer.poll() is not None:
                assert tracer.stderr is not None
                raise NotPermitted(f"strace: {tracer.stderr.read().strip()}")
            time.sleep(0.02)
        yield
    finally:
        tracer.terminate()
        try:
            tracer.wait(20)
        except subprocess.TimeoutExpired:
            tracer.kill()
            tracer.wait()
        assert tracer.stderr is not None
        tracer.stderr.close()


def traced(pid: int) -> bool:
    """Whether all threads of a process are traced."""
    try:
        states = [path.read_text(encoding="ascii") for path in Path(f"/proc/{pid}/task").glob("*/status")]
    except OSError:
        return False
    return bool(states) and all("TracerPid:\t0\n" not in state for state in states)
