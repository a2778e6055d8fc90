"""The first start of a member: its store, then its log. A log proves that everything before it is there.

And what a later start checks: neither log nor store is missing, and the store is not ahead of the log.
"""

import os
from collections.abc import Sequence

import lmdb

from raftkv.disk import Disk
from raftkv.mvcc import Store
from raftkv.pb import rpc_pb2
from raftkv.server.apply import applied_position
from raftkv.server.datadir import DataDir, StartError, disk_error
from raftkv.server.identity import Identity
from raftkv.server.membership import Membership
from raftkv.wal import Wal, WalContents
from raftkv.wal.log import SEGMENT_BYTES


def bootstrap(
    disk: Disk,
    data_dir: DataDir,
    store: Store,
    identity: Identity,
    members: Sequence[rpc_pb2.Member],
    *,
    introduced: Sequence[rpc_pb2.Member] = (),
    segment_bytes: int = SEGMENT_BYTES,
) -> Wal:
    """Write what a new member begins with: who it is and who the first members are, durably.

    One that joins later was told who the members are today: `introduced`.

    Raises:
        StartError: the disk is full or not writable, or the store is in use while its log is gone.
    """
    index, _ = applied_position(store.backend)
    if index:
        raise StartError(
            f"{data_dir.store} has entries up to {index} applied, but the log is missing, and with it this "
            f"member's votes: restore {data_dir.wal}, or remove the member and add it as a new one"
        )
    Membership(store).bootstrap(members, introduced)
    try:
        flush = store.begin_flush()
        assert flush is not None
        flush.write()
        store.backend.end_flush(flush)
        return Wal.create(disk, data_dir.wal, identity.encode(), segment_bytes)
    except OSError as error:
        raise disk_error(error, data_dir.path) from error
    except lmdb.Error as error:
        raise StartError(f"cannot write {data_dir.store}: {error}: free some space") from error


def check_store_exists(data_dir: DataDir) -> None:
    """Refuse a log without a store, before one is created: LMDB does that with an empty file, too.

    Raises:
        StartError: there is none, or it cannot be read.
    """
    found = "empty"
    try:
        if os.stat(os.path.join(data_dir.store, "data.mdb")).st_size:
            return
    except FileNotFoundError:
        found = "missing"
    except OSError as error:
        error.filename = data_dir.store
        raise disk_error(error, data_dir.path) from error
    raise StartError(
        f"{data_dir.path} holds a log, but its store is {found}: restore {data_dir.store}, or remove the member "
        "and add it as a new one"
    )


def check_store_follows(data_dir: DataDir, store: Store, contents: WalContents) -> None:
    """Refuse a store and a log that do not belong together.

    A store ahead of the log: the log lost entries that were acknowledged, or is an older copy. A store that ends before
    the log begins: it is an older copy itself.

    Raises:
        StartError: it is.
    """
    index, term = applied_position(store.backend)
    first = contents.snapshot[0] + 1
    if index < first - 1 or (contents.entries and contents.entries[0][1] != first):
        raise StartError(
            f"{data_dir.store} has entries up to {index} applied, but the log begins behind {first - 1}: restore store "
            f"and log of {data_dir.path} from one moment, or remove the member and add it as a new one"
        )
    last = contents.entries[-1][1] if contents.entries else contents.snapshot[0]
    found = next((entry[0] for entry in reversed(contents.entries) if entry[1] == index), term)
    if index > last or found != term:
        raise StartError(
            f"{data_dir.store} has entry {index} of term {term} applied, but the log ends at {last} or differs: "
            f"restore store and log of {data_dir.path} from one moment, or remove the member and add it as a new one"
        )
