"""A snapshot as a file: a store's LMDB file, and the SHA-256 of it at the end. docs/formats.md has its tables."""

import hashlib
import os
import struct

import google_crc32c
import lmdb

from cli.raftctl.failure import Failure
from cli.raftctl.printers import Snapshot

DIGEST_BYTES = 32
_READ_BYTES = 1 << 20
_RECORD = struct.Struct(">12sI")


def check_digest(path: str) -> int:
    """Compare a file with the digest at its end; its size without it.

    Raises:
        Failure: they differ, or there is none.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size - DIGEST_BYTES
            digest, left = hashlib.sha256(), size
            while left > 0 and (data := file.read(min(left, _READ_BYTES))):
                digest.update(data)
                left -= len(data)
            if size <= 0 or digest.digest() != file.read():
                raise Failure(f"expected sha256 at the end of {path}: it is damaged, incomplete or no snapshot")
    except OSError as error:
        raise Failure(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    return size


def examine(path: str) -> Snapshot:
    """Verify a snapshot and say what it holds.

    Raises:
        Failure: it is damaged, or not raftkv's.
    """
    size = check_digest(path)
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
        raise Failure(f"{path} is no snapshot of raftkv: {error}") from error
    return Snapshot(crc, revision, records, size)


def _count(block: bytes) -> int:
    count = offset = 0
    while offset < len(block):
        _, length = _RECORD.unpack_from(block, offset)
        offset += _RECORD.size + length
        count += 1
    return count
