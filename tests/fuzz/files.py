"""Fuzz targets of what is read from disk: the log, snapshots of raftkv and of etcd."""

import contextlib
import io
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from raftkv.bbolt.pages import META, META_BYTES, fnv1a
from raftkv.mvcc import LmdbBackend, Store
from raftkv.offline import EtcdFile, OfflineError, range_of_file
from raftkv.offline.snapshot_file import check_ours, examine, is_etcds
from raftkv.pb import rpc_pb2
from raftkv.raft import Entry, EntryKind
from raftkv.simulation.disk import FaultyDisk
from raftkv.wal import CorruptLog, Wal
from raftkv.wal import format as fmt
from raftkv.wal.dump import dump
from tests.fuzz.bytestream import Choices
from tests.fuzz.target import Target
from tests.property.test_etcd_file import database, signed

SEGMENT_BYTES = 2048
NAME = "0000000000000000.wal"
MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def file_of(data: bytes) -> Iterator[str]:
    """The path of a file with these bytes, in memory where the system has such files."""
    with tempfile.NamedTemporaryFile(dir=MEMORY if MEMORY.is_dir() else None) as file:
        file.write(data)
        file.flush()
        yield file.name


# The log


def disk_of(files: dict[str, bytes]) -> FaultyDisk:
    disk = FaultyDisk()
    for path, data in files.items():
        disk.create(path, 0).write(0, data)
    return disk


def sealed(data: bytes) -> bytes:
    """A segment whose records have the right checksums, whatever they hold: a flipped bit alone is found at once."""
    found, offset, chain = bytearray(data), 0, 0
    while offset + fmt.HEADER_BYTES <= len(found):
        length, kind = struct.unpack_from("<IB", found, offset)
        start = offset + fmt.HEADER_BYTES
        if kind not in list(fmt.RecordType) or start + length > len(found):
            break
        crc = fmt.checksum(
            0 if not offset else chain, bytes(found[offset : offset + 5] + found[start : start + length])
        )
        struct.pack_into("<I", found, offset + 8, crc)
        if kind == fmt.RecordType.SEGMENT and length >= 16:
            chain = struct.unpack_from("<Q", found, start + 12)[0] & 0xFFFFFFFF
        elif kind != fmt.RecordType.MARKER:
            chain = crc
        offset = start + length + -(fmt.HEADER_BYTES + length) % 8
    return bytes(found)


def wal(data: bytes) -> None:
    """A log is read, or refused; one that is read goes on, and is read again with what was added."""
    choices = Choices(data)
    fits = choices.byte() & 1
    segment = sealed(choices.rest()) if fits else choices.rest()
    disk = disk_of({f"wal/{NAME}": segment})
    try:
        log, contents = Wal.open(disk, "wal", SEGMENT_BYTES)
    except CorruptLog:
        return
    log.settle()
    last = contents.entries[-1] if contents.entries else (1, contents.snapshot[0], 0, b"")
    if last[1] + 1 < 1 << 63:
        log.write([log.encode((last[0], 0, 0), [Entry(last[0], last[1] + 1, EntryKind.NORMAL, b"added")])])
        log.close()
        _, again = Wal.open(disk, "wal", SEGMENT_BYTES)
        assert again.repaired is None
        assert again.entries[-1][3] == b"added"
        assert again.entries[:-1] == contents.entries


def wal_dump(data: bytes) -> None:
    """`raftkv wal dump` shows what there is of a log, however damaged."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        Path(directory, NAME).write_bytes(sealed(data))
        dump(directory, io.StringIO())


def segment() -> bytes:
    disk = FaultyDisk()
    log = Wal.create(disk, "wal", b"identity", SEGMENT_BYTES)
    for number in range(1, 5):
        entries = [Entry(number, number * 2 + one, EntryKind.NORMAL, b"data" * number) for one in (0, 1)]
        log.write([log.encode((number, 7, number), entries)])
    log.close()
    [name] = disk.list("wal")
    return disk.read(f"wal/{name}").rstrip(b"\0") + bytes(64)


# Snapshots


def snapshot(data: bytes) -> None:
    """A snapshot is what its digest says, or refused; the checks before LMDB opens it take any bytes.

    The digest is never made to fit: LMDB trusts its files, and so a file that somebody else made must not be restored
    (SECURITY.md).
    """
    with file_of(data) as path:
        with contextlib.suppress(OfflineError):
            is_etcds(path)
            check_ours(path, max(0, len(data) - 32))
        if data == SOUND:
            assert examine(path).revision == 4
            return
        try:
            examine(path)
        except OfflineError:
            return
        raise AssertionError("a damaged snapshot was taken")


def sound_snapshot() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        backend = LmdbBackend(directory, map_bytes=1 << 20)
        store = Store(backend)
        for number in range(3):
            store.put(rpc_pb2.PutRequest(key=b"k%d" % number, value=b"v"))
        flush = store.begin_flush()
        assert flush is not None
        flush.write()
        backend.end_flush(flush)
        backend.close()
        [path] = Path(directory).glob("**/data.mdb")
        return signed(path.read_bytes())


SOUND = sound_snapshot()


def bbolt(data: bytes) -> None:
    """A file of etcd is read, or refused in so many words."""
    choices = Choices(data)
    fits = choices.byte() & 1
    content = bytearray(choices.rest())
    if fits:
        for at in (0, 4096):
            _seal_meta(content, at)
    with file_of(bytes(content)) as path:
        try:
            with EtcdFile(path, skip_hash_check=True) as file:
                places = [(record.main, record.sub) for record in file.records()]
                assert places == sorted(set(places))
                file.summary()
                range_of_file(file, rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"))
        except OfflineError:
            pass


def _seal_meta(content: bytearray, at: int) -> None:
    if len(content) >= at + 16 + META_BYTES and content[at + 8] & META:
        checksum = fnv1a(bytes(content[at + 16 : at + 16 + META_BYTES - 8]))
        struct.pack_into("<Q", content, at + 16 + META_BYTES - 8, checksum)


TARGETS = (
    Target("wal", wal, (b"\0" + segment(), b"\1" + segment()), 4096),
    Target("wal_dump", wal_dump, (segment(),), 4096),
    Target("snapshot", snapshot, (SOUND,), 1 << 16),
    Target("bbolt", bbolt, (b"\0" + database(), b"\1" + database()), 1 << 16),
)
