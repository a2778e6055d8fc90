"""The keyspace: revisions, ranges, transactions, compaction, and its durable form.

Nothing here knows of Raft or of an event loop: the server calls `Store` in log order.
"""

from raftkv.mvcc.backend import AUTH, LEASES, META, Backend, Flush, LmdbBackend
from raftkv.mvcc.filling import fill_deletion, fill_revision, fill_version
from raftkv.mvcc.hashing import HistoryHash, hash_history
from raftkv.mvcc.ranges import Part
from raftkv.mvcc.store import Change, Store

__all__ = [
    "AUTH",
    "LEASES",
    "META",
    "Backend",
    "Change",
    "Flush",
    "HistoryHash",
    "LmdbBackend",
    "Part",
    "Store",
    "fill_deletion",
    "fill_revision",
    "fill_version",
    "hash_history",
]
