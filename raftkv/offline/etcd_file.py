"""A snapshot of etcd 3.x: its buckets, and what they say.

    key      main u64 · `_` · sub u64, big endian, and `t` for a deletion -> mvccpb.KeyValue (then the key alone)
    lease    id i64, big endian -> leasepb.Lease
    meta     scheduledCompactRev, finishedCompactRev -> main u64 · `_` · sub u64
    auth     authEnabled -> 1 byte, authRevision -> u64
    authUsers, authRoles  name -> authpb.User, authpb.Role

A file of `etcdctl snapshot save` ends in its SHA-256. One that was copied from a data directory does not, and can only
be read with the check skipped: then a changed bit in a value goes unseen.
"""

import contextlib
import struct
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import google_crc32c
from google.protobuf.message import DecodeError

from raftkv.bbolt import DamagedFile, Database
from raftkv.lease import MAX_TTL_SECONDS
from raftkv.mvcc.encoding import decode_varint
from raftkv.offline.errors import OfflineError, Progress, no_progress, unreadable
from raftkv.offline.snapshot_file import Summary, content_bytes
from raftkv.pb import auth_pb2, kv_pb2

N = TypeVar("N", auth_pb2.User, auth_pb2.Role)

_REVISION = struct.Struct(">Q1sQ")
_TOMBSTONE = b"t"
_KEY, _LEASE, _META = b"key", b"lease", b"meta"
_COMPACTIONS = (b"scheduledCompactRev", b"finishedCompactRev")
_ID = struct.Struct(">q")
_INT64_MAX = (1 << 63) - 1
_SUB_MAX = (1 << 32) - 1


class Record(NamedTuple):
    """One change of one key; `kv` is the new version, of a deletion only the key."""

    main: int
    sub: int
    deleted: bool
    kv: kv_pb2.KeyValue


class LeaseRecord(NamedTuple):
    """A lease; seconds. `remaining` is what was left by the last checkpoint, 0 for all of it."""

    id: int
    ttl: int
    remaining: int


class EtcdFile:
    """An open snapshot of etcd.

    Raises, each method: OfflineError, when the file is damaged or not etcd's.
    """

    def __init__(self, path: str, *, skip_hash_check: bool = False, progress: Progress = no_progress) -> None:
        """Open a file and check the hash at its end, which takes as long as reading it."""
        self.path = path
        size = content_bytes(path, skip_hash_check=skip_hash_check, progress=progress)
        try:
            self._database = Database(path, size)
        except DamagedFile as error:
            raise OfflineError(f"{path} is no snapshot of etcd: {error}") from error
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            with self._reading():
                self._buckets = dict(self._database.root.buckets())
                self._load()
        except BaseException:
            self._database.close()
            raise

    def _load(self) -> None:
        if not {_KEY, _META} <= self._buckets.keys():
            raise DamagedFile("it has no keys of etcd")
        meta = self._small(_META)
        compacted = [_revision(meta[name])[0] for name in _COMPACTIONS if name in meta]
        self.compacted_revision = max(compacted, default=-1)
        """Below it there is no history; -1: nothing was compacted."""
        self.leases = [_lease(key, value) for key, value in self._small(_LEASE).items()]
        """By id, the positive ones first."""
        auth = self._small(b"auth")
        self.auth_enabled = auth.get(b"authEnabled") == b"\1"
        self.auth_revision = int.from_bytes(auth.get(b"authRevision", b"\1")[:8], "big")
        self.users = [_named(auth_pb2.User, name, value) for name, value in self._small(b"authUsers").items()]
        """With the hashes of their passwords."""
        self.roles = [_named(auth_pb2.Role, name, value) for name, value in self._small(b"authRoles").items()]

    def _small(self, name: bytes) -> dict[bytes, bytes]:
        bucket = self._buckets.get(name)
        return {} if bucket is None else dict(bucket.items())

    @property
    def size_bytes(self) -> int:
        """Size of the pages that exist."""
        return self._database.size_bytes

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> "EtcdFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except DamagedFile as error:
            raise OfflineError(f"{self.path} is damaged: {error}") from error
        except OSError as error:
            raise unreadable(self.path, error) from error

    def records(self) -> Iterator[Record]:
        """Every change that the file has, in order of revision."""
        last = (0, -1)
        with self._reading():
            for key, value in self._buckets[_KEY].items():
                record = _record(key, value)
                if (record.main, record.sub) <= last:
                    raise DamagedFile(f"revision {record.main}.{record.sub} is there twice")
                last = record.main, record.sub
                yield record

    def summary(self) -> Summary:
        """What `etcdctl snapshot status` says: a CRC-32C over all buckets, and how many entries they have."""
        crc, count, revision = 0, 0, 0
        with self._reading():
            for name, bucket in self._buckets.items():
                crc = google_crc32c.extend(crc, name)
                for key, value in bucket.items():
                    crc = google_crc32c.extend(google_crc32c.extend(crc, key), value)
                    count += 1
                    if name == _KEY:
                        revision = _revision(key)[0]
        return Summary(crc, revision, count, self.size_bytes)


def _revision(packed: bytes) -> tuple[int, int]:
    if len(packed) < _REVISION.size:
        raise DamagedFile(f"{packed!r} is no revision")
    main, separator, sub = _REVISION.unpack_from(packed)
    if separator != b"_" or not 0 < main <= _INT64_MAX or sub > _SUB_MAX:
        raise DamagedFile(f"{packed!r} is no revision")
    return main, sub


def _record(packed: bytes, encoded: bytes) -> Record:
    main, sub = _revision(packed)
    mark = packed[_REVISION.size :]
    if mark not in (b"", _TOMBSTONE):
        raise DamagedFile(f"{packed!r} is no revision")
    try:
        kv = kv_pb2.KeyValue.FromString(encoded)
    except DecodeError:
        raise DamagedFile(f"revision {main}.{sub} is no key-value") from None
    # A revision without a key is what etcdutl leaves when it bumps revisions.
    sound = bool(kv.key) if mark else not encoded or _is_version(kv, main)
    if not sound:
        raise DamagedFile(f"revision {main}.{sub} is no version of a key")
    return Record(main, sub, bool(mark), kv)


def _is_version(kv: kv_pb2.KeyValue, main: int) -> bool:
    return bool(kv.key) and kv.mod_revision == main and 0 < kv.create_revision <= main and kv.version > 0


def _named(kind: type[N], name: bytes, encoded: bytes) -> N:
    try:
        found = kind.FromString(encoded)
        name.decode()
    except (DecodeError, UnicodeDecodeError):
        raise DamagedFile(f"{kind.__name__.lower()} {name!r} is none") from None
    if not name or found.name != name:
        raise DamagedFile(f"{kind.__name__.lower()} {name!r} is none")
    return found


def _lease(packed: bytes, encoded: bytes) -> LeaseRecord:
    fields = {1: 0, 2: 0, 3: 0}
    offset = 0
    try:
        while offset < len(encoded):
            tag, offset = decode_varint(encoded, offset)
            value, offset = decode_varint(encoded, offset)
            # Varints alone, as they are written: of 64 bits, with a sign.
            if tag & 7 or not 0 <= value < 1 << 64:
                raise DamagedFile(f"lease {packed.hex()} is none")
            fields[tag >> 3] = value - (1 << 64) if value > _INT64_MAX else value
    except IndexError:
        raise DamagedFile(f"lease {packed.hex()} is none") from None
    found = LeaseRecord(fields[1], fields[2], fields[3])
    in_bounds = 0 < found.ttl <= MAX_TTL_SECONDS and 0 <= found.remaining <= found.ttl
    if not found.id or packed != _ID.pack(found.id) or not in_bounds:
        raise DamagedFile(f"lease {packed.hex()} is none")
    return found
