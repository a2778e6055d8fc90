"""What the figures depend on: processor, memory, disk, versions, and who else used the machine."""

import os
import platform
import resource
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.engines import RAFTKV, ROOT, TICKS_PER_SECOND

RECORD_BYTES = 320
SYNCS = 200


def describe(directory: Path) -> dict[str, str]:
    """Return the machine's properties by name; directory: where the data is going to be."""
    processors = f"{os.cpu_count()} × {_field('/proc/cpuinfo', 'model name')}"
    version = _first_line(*RAFTKV.command, "--version", directory=RAFTKV.directory)
    return {
        "machine": f"{processors}, {_memory()}, Linux {platform.release()}",
        "disk": f"{_filesystem(directory)}, fdatasync of {RECORD_BYTES} B {_sync_us(directory):.0f} µs (median)",
        "etcd": _first_line("etcd", "--version").removeprefix("etcd Version: "),
        "raftkv": f"{version.removeprefix('raftkv ')} at "
        f"{_first_line('git', 'describe', '--always', '--dirty') or 'no commit'}, Python {platform.python_version()}",
        "h2load": _first_line("h2load", "--version").removeprefix("h2load "),
    }


def _memory() -> str:
    kibibytes = int(_field("/proc/meminfo", "MemTotal").split()[0])
    return f"{kibibytes / 2**20:.1f} GiB"


def _field(file: str, name: str) -> str:
    lines = (line.partition(":") for line in Path(file).read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "unknown")


def _filesystem(directory: Path) -> str:
    """Return the kind of the file system that holds a directory: on tmpfs a sync costs nothing."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(fields[1], fields[2]) for fields in mounts if directory.resolve().is_relative_to(fields[1])]
    return max(holding, key=lambda mount: len(mount[0]))[1] if holding else "unknown"


def _sync_us(directory: Path) -> float:
    """Measure a sync of a small record in a file whose space is already allocated, in microseconds."""
    path = directory / "sync"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, bytes(RECORD_BYTES * SYNCS))
        os.fsync(descriptor)
        times = []
        for number in range(SYNCS):
            os.pwrite(descriptor, b"x" * RECORD_BYTES, number * RECORD_BYTES)
            begin = time.perf_counter()
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - begin)
        return statistics.median(times) * 1e6
    finally:
        os.close(descriptor)
        path.unlink()


def _first_line(*command: str, directory: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip()


class Processors:
    """The processor time of the machine and of this process with its finished children, from one moment on."""

    def __init__(self) -> None:
        self._begin = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        ticks = [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
        own = sum(
            used.ru_utime + used.ru_stime
            for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )
        idle = ticks[3] + ticks[4]
        return sum(ticks) / TICKS_PER_SECOND, (sum(ticks) - idle) / TICKS_PER_SECOND, own

    def share_of_others(self, servers_seconds: float) -> float:
        """Return what part of the machine neither we nor the servers used since, but somebody did (0 to 1)."""
        whole, busy, own = (now - then for now, then in zip(self._read(), self._begin, strict=True))
        return max(0.0, busy - own - servers_seconds) / whole if whole else 0.0
