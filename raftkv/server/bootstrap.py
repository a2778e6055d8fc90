"""The first start of a member: its store, then its log. A log proves that everything before it is there."""

from collections.abc import Sequence

import lmdb

from raftkv.disk import Disk
from raftkv.mvcc import Store
from raftkv.pb import rpc_pb2
from raftkv.server.datadir import DataDir, StartError, disk_error
from raftkv.server.identity import Identity
from raftkv.server.membership import Membership
from raftkv.wal import Wal


def bootstrap(
    disk: Disk, data_dir: DataDir, store: Store, identity: Identity, members: Sequence[rpc_pb2.Member]
) -> Wal:
    """Write what a new member begins with: who it is and who the first members are, durably.

    Raises:
        StartError: the disk is full or not writable.
    """
    Membership(store).bootstrap(members)
    try:
        flush = store.begin_flush()
        assert flush is not None
        flush.write()
        store.backend.end_flush(flush)
        return Wal.create(disk, data_dir.wal, identity.encode())
    except OSError as error:
        raise disk_error(error, data_dir.path) from error
    except lmdb.Error as error:
        raise StartError(f"cannot write {data_dir.store}: {error}: free some space") from error
