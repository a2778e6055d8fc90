"""The history of an etcd file, as raftkv stores it.

Revisions, versions, leases, users, roles and the compacted revision are those of the file. Members and alarms are not
taken over: they belong to the cluster that was saved.
"""

from raftkv.auth import fill_auth
from raftkv.lease import fill_leases
from raftkv.mvcc import Backend, fill_deletion, fill_revision, fill_version
from raftkv.mvcc.interval import Interval, contains
from raftkv.offline.errors import Progress, no_progress
from raftkv.offline.etcd_file import EtcdFile

ALL_KEYS: Interval = (b"", None)
FLUSH_BYTES = 16 << 20
_TELL_RECORDS = 1000


def convert(file: EtcdFile, backend: Backend, span: Interval = ALL_KEYS, progress: Progress = no_progress) -> None:
    """Write what a file holds to an empty store, durably; of the keys only those of an interval.

    Raises:
        OfflineError: the file is damaged; the store holds a part.
        OSError, lmdb.Error: the store cannot be written.
    """
    revision = max(file.compacted_revision, 1)
    done = 0
    for number, (main, sub, deleted, kv) in enumerate(file.records()):
        revision = max(revision, main)
        done += len(kv.key) + len(kv.value)
        if number % _TELL_RECORDS == 0:
            progress(min(done, file.size_bytes), file.size_bytes)
        if not kv.key or not contains(span, kv.key):
            continue
        if deleted:
            fill_deletion(backend, main, sub, kv.key)
        else:
            fill_version(backend, main, sub, kv)
        if backend.pending_bytes >= FLUSH_BYTES:
            flush(backend)
    fill_leases(backend, file.leases)
    if file.auth_enabled or file.users or file.roles:
        fill_auth(backend, enabled=file.auth_enabled, revision=file.auth_revision, users=file.users, roles=file.roles)
    fill_revision(backend, revision, file.compacted_revision)
    flush(backend)
    progress(file.size_bytes, file.size_bytes)


def flush(backend: Backend) -> None:
    """Make what is pending durable."""
    changes = backend.begin_flush()
    if changes is not None:
        changes.write()
        backend.end_flush(changes)
