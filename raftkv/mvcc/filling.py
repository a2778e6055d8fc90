"""Filling an empty backend with a history from elsewhere, before a `Store` is opened on it."""

from raftkv.mvcc import encoding as enc
from raftkv.mvcc.backend import META, REVISIONS, Backend
from raftkv.mvcc.store import COMPACTED, CURRENT, DELETED, NUMBER, REVISION
from raftkv.pb import kv_pb2


def fill_version(backend: Backend, main: int, sub: int, kv: kv_pb2.KeyValue) -> None:
    """Store a version of a key. Calls come in order of revision."""
    chunk = enc.encode_chunk(kv.key, kv.create_revision, kv.mod_revision, kv.version, kv.value, kv.lease)
    backend.put(REVISIONS, REVISION.pack(main, sub), chunk)


def fill_deletion(backend: Backend, main: int, sub: int, key: bytes) -> None:
    """Store the end of a key; order as for versions."""
    backend.put(REVISIONS, REVISION.pack(main, sub), DELETED + key)


def fill_revision(backend: Backend, revision: int, compacted_revision: int) -> None:
    """Store how far the history goes, and below which revision there is none (-1: it is complete)."""
    backend.put(META, CURRENT, NUMBER.pack(revision))
    if compacted_revision >= 0:
        backend.put(META, COMPACTED, NUMBER.pack(compacted_revision))
