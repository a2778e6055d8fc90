"""A snapshot as a file: a store's LMDB file, and the SHA-256 of it at the end. docs/formats.md has its tables."""

import hashlib
import os
import struct
from typing import NamedTuple

import google_crc32c
import lmdb

from raftkv.bbolt import pages
from raftkv.offline.errors import OfflineError, Progress, no_progress, unreadable

DIGEST_BYTES = 32
READ_BYTES = 1 << 20
_RECORD = struct.Struct(">12sI")
_PAGE_BYTES = 512
"""Of both kinds of files every page is a multiple of it: what is left over is the digest."""

# LMDB's meta page behind the page header: magic, version, page size; number of the last page.
_LMDB_MAGIC = struct.pack("<II", 0xBEEFC0DE, 1)
_LMDB_MAGIC_AT, _LMDB_PAGE_BYTES_AT, _LMDB_LAST_PAGE_AT = 16, 40, 136
_LMDB_HEAD_BYTES = 144


class Summary(NamedTuple):
    """What a snapshot holds. `size_bytes` is that of its pages."""

    hash: int
    revision: int
    records: int
    size_bytes: int


def check_digest(path: str, progress: Progress = no_progress) -> int:
    """Compare a file with the digest at its end; its size without it.

    Raises:
        OfflineError: they differ, or there is none.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - DIGEST_BYTES
            digest, left = hashlib.sha256(), size
            while left > 0 and (data := file.read(min(left, READ_BYTES))):
                digest.update(data)
                left -= len(data)
                progress(size - left, size)
            if size <= 0 or digest.digest() != file.read():
                raise OfflineError(f"expected sha256 at the end of {path}: it is damaged, incomplete or no snapshot")
    except OSError as error:
        raise unreadable(path, error) from error
    return size


def content_bytes(path: str, *, skip_hash_check: bool, progress: Progress = no_progress) -> int:
    """The size of a file without its digest, which is checked unless that is to be skipped.

    Raises:
        OfflineError: the file is damaged, or has no digest and should have one.
    """
    if not skip_hash_check:
        return check_digest(path, progress)
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise unreadable(path, error) from error
    return size - DIGEST_BYTES if size % _PAGE_BYTES == DIGEST_BYTES else size


def is_etcds(path: str) -> bool:
    """Whether a file begins as a bbolt file does.

    Raises:
        OfflineError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return pages.decode_meta(file.read(pages.HEADER.size + pages.META_BYTES)) is not None
    except OSError as error:
        raise unreadable(path, error) from error


def check_ours(path: str, size: int) -> None:
    """Refuse what LMDB must not open: another kind of file, or one that is shorter than it says.

    Raises:
        OfflineError: it is.
    """
    if is_etcds(path):
        raise OfflineError(f"{path} is a snapshot of etcd: see `raftctl snapshot read-etcd`, or restore --from-etcd")
    with open(path, "rb") as file:
        heads = [file.read(_LMDB_HEAD_BYTES).ljust(_LMDB_HEAD_BYTES, b"\0")]
        if not heads[0].startswith(_LMDB_MAGIC, _LMDB_MAGIC_AT):
            raise OfflineError(f"{path} is no snapshot of raftkv")
        (page_bytes,) = struct.unpack_from("<I", heads[0], _LMDB_PAGE_BYTES_AT)
        file.seek(page_bytes)
        heads.append(file.read(_LMDB_HEAD_BYTES).ljust(_LMDB_HEAD_BYTES, b"\0"))
    last = max(struct.unpack_from("<Q", head, _LMDB_LAST_PAGE_AT)[0] for head in heads)
    if (last + 1) * page_bytes > size:
        raise OfflineError(f"{path} is incomplete: it has {size} bytes of {(last + 1) * page_bytes}")


def examine(path: str, progress: Progress = no_progress) -> Summary:
    """Verify a snapshot and say what it holds; `progress` hears of its digest.

    Raises:
        OfflineError: it is damaged, or not raftkv's.
    """
    size = check_digest(path, progress)
    check_ours(path, size)
    try:
        with lmdb.open(path, subdir=False, readonly=True, lock=False, max_dbs=3) as environment:
            tables = {name: environment.open_db(name, create=False) for name in (b"meta", b"revisions")}
            with environment.begin() as txn:
                revision = int.from_bytes(txn.get(b"revision", db=tables[b"meta"]) or b"\0\0\0\0\0\0\0\1", "big")
                crc = records = 0
                with txn.cursor(db=tables[b"revisions"]) as cursor:
                    for _, block in cursor:
                        crc = google_crc32c.extend(crc, bytes(block))
                        records += _count(bytes(block))
    except lmdb.Error as error:
        raise OfflineError(f"{path} is no snapshot of raftkv: {error}") from error
    return Summary(crc, revision, records, size)


def _count(block: bytes) -> int:
    count = offset = 0
    while offset < len(block):
        _, length = _RECORD.unpack_from(block, offset)
        offset += _RECORD.size + length
        count += 1
    return count
