"""A data directory for a member of a new cluster, made of a snapshot.

The store is the snapshot's, with the members of the new cluster; alarms are forgotten. The log is new and begins behind
entry 1 of term 1, which stands for the store: whoever has nothing, or comes later, is sent the store and does not begin
at nothing. For the same reason every first member counts as heard: one that starts without a restored directory would
vote for an empty store, and is refused as one that lost its data.

Everything is written to `restoring/` within the directory, synced and moved into place, the log last: without it
there is no member, and a start is refused.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import lmdb

from raftkv.config import Config, ConfigError
from raftkv.disk import OsDisk
from raftkv.flags import parse
from raftkv.lease import LeaseStore
from raftkv.mvcc import LmdbBackend, Store
from raftkv.mvcc import encoding as enc
from raftkv.offline.conversion import ALL_KEYS, convert
from raftkv.offline.errors import OfflineError, Progress, no_progress, unreadable
from raftkv.offline.etcd_file import EtcdFile
from raftkv.offline.snapshot_file import READ_BYTES, check_ours, content_bytes
from raftkv.pb import rpc_pb2
from raftkv.raft import ConfState
from raftkv.server.alarms import Alarms
from raftkv.server.apply import set_applied_position
from raftkv.server.datadir import DataDir, StartError
from raftkv.server.heard import FILE as HEARD
from raftkv.server.heard import note_heard
from raftkv.server.identity import Identity, first_members
from raftkv.server.membership import Membership, encode_conf_state
from raftkv.wal import Wal, WalError

RESTORING = "restoring"
INDEX, TERM = 1, 1
"""The entry that the store stands for."""
REVISION_MAX = (1 << 63) - 1
_STORE, _WAL = "store", "wal"
_DATA = "data.mdb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to restore, and for whom. `flags` are those of `raftkv` that describe a first start."""

    path: str
    flags: Sequence[str] = ()
    from_etcd: bool = False
    skip_hash_check: bool = False
    bump_revision: int = 0
    """How much larger than in the snapshot the revision is; then all history is compacted."""


@dataclass(slots=True)
class Restored:
    """What came of it. `notes` are what the operator should know."""

    data_dir: str
    cluster_id: int
    member_id: int
    revision: int
    keys: int
    notes: list[str] = field(default_factory=list)


def restore(plan: Plan, *, checking: Progress = no_progress, writing: Progress = no_progress) -> Restored:
    """Make a data directory. It appears whole, or not at all.

    Raises:
        OfflineError: the snapshot, the flags or the directory cannot be used; nothing was changed.
    """
    try:
        config = parse(plan.flags, {})
        identity, members = first_members(config)
    except (ConfigError, StartError) as error:
        raise OfflineError(str(error)) from error
    with contextlib.ExitStack() as stack:
        source: EtcdFile | int
        if plan.from_etcd:
            source = EtcdFile(plan.path, skip_hash_check=plan.skip_hash_check, progress=checking)
            stack.callback(source.close)
        else:
            source = content_bytes(plan.path, skip_hash_check=plan.skip_hash_check, progress=checking)
            check_ours(plan.path, source)
        data_dir = _locked(config)
        stack.callback(data_dir.close)
        scratch = os.path.join(data_dir.path, RESTORING)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        try:
            os.mkdir(scratch, 0o700)
            return _Restoration(plan, config, identity, members, scratch).run(source, writing)
        except OSError as error:
            raise OfflineError(f"cannot write {data_dir.path}: {(error.strerror or str(error)).lower()}") from error
        except lmdb.Error as error:
            raise OfflineError(f"cannot write {data_dir.path}: {error}") from error


def _locked(config: Config) -> DataDir:
    data_dir = DataDir(config.data_dir)
    try:
        data_dir.lock()
    except StartError as error:
        raise OfflineError(str(error)) from error
    if not data_dir.was_empty:
        data_dir.close()
        raise OfflineError(f"data-dir {config.data_dir!r} exists and is not empty: choose another --data-dir")
    return data_dir


class _Restoration:
    """One restore, in a directory of its own below the data directory."""

    def __init__(
        self, plan: Plan, config: Config, identity: Identity, members: Sequence[rpc_pb2.Member], scratch: str
    ) -> None:
        self._plan = plan
        self._identity = identity
        self._members = members
        self._scratch = scratch
        self._disk = OsDisk()
        self._conf_state = ConfState(voters=())
        self._result = Restored(config.data_dir, identity.cluster_id, identity.member_id, 0, 0)

    def run(self, source: EtcdFile | int, writing: Progress) -> Restored:
        store = os.path.join(self._scratch, _STORE)
        os.mkdir(store, 0o700)
        if isinstance(source, int):
            self._copy(os.path.join(store, _DATA), source, writing)
        backend = LmdbBackend(store)
        try:
            if isinstance(source, EtcdFile):
                convert(source, backend, progress=writing)
            self._take_over(Store(backend))
        finally:
            backend.close()
        self._disk.sync_directory(store)
        self._begin_log()
        note_heard(self._disk, self._scratch, [member.ID for member in self._members])
        self._move_into_place()
        return self._result

    def _copy(self, target: str, size: int, writing: Progress) -> None:
        left = size
        with self._open() as file, open(target, "xb") as copy:
            while left and (data := file.read(min(left, READ_BYTES))):
                copy.write(data)
                left -= len(data)
                writing(size - left, size)
            if left:
                raise OfflineError(f"{self._plan.path} has become shorter")
            copy.flush()
            os.fsync(copy.fileno())

    def _open(self) -> BinaryIO:
        try:
            return open(self._plan.path, "rb")
        except OSError as error:
            raise unreadable(self._plan.path, error) from error

    def _take_over(self, store: Store) -> None:
        """Make the store that of the new cluster."""
        leases = LeaseStore(store)
        membership = Membership(store)
        if {member.ID for member in membership.members} & {member.ID for member in self._members}:
            self._result.notes.append(
                "the new cluster has members with ids of the one that was saved: unless that is gone for good, restore "
                "with another --initial-cluster-token"
            )
        membership.bootstrap(self._members)
        self._conf_state = membership.conf_state
        Alarms(store).forget()
        set_applied_position(store, INDEX, TERM)
        if self._plan.bump_revision:
            store.revision += self._plan.bump_revision
            if store.revision > REVISION_MAX:
                raise OfflineError(f"--bump-revision {self._plan.bump_revision} is too large")
            store.compact(store.revision)
        self._tell_leases(store, leases)
        self._result.revision = store.revision
        self._result.keys = store.count(ALL_KEYS)
        changes = store.begin_flush()
        assert changes is not None
        changes.write()
        store.backend.end_flush(changes)

    def _tell_leases(self, store: Store, leases: LeaseStore) -> None:
        named = (enc.decode_chunk(chunk).lease for chunk in store.select(ALL_KEYS))
        lost = sum(1 for lease in named if lease and not leases.exists(lease))
        if lost:
            self._result.notes.append(f"{lost} keys name a lease that the snapshot does not have: they will not expire")

    def _begin_log(self) -> None:
        wal = Wal.create(self._disk, os.path.join(self._scratch, _WAL), self._identity.encode())
        try:
            point = (INDEX, TERM, encode_conf_state(self._conf_state))
            wal.write([wal.encode((TERM, 0, INDEX), (), snapshot=point)])
        except WalError as error:
            raise OfflineError(str(error)) from error
        finally:
            wal.close()

    def _move_into_place(self) -> None:
        directory = os.path.dirname(self._scratch)
        for part in (_STORE, HEARD, _WAL):
            self._disk.sync_directory(self._scratch)
            self._disk.rename(os.path.join(self._scratch, part), os.path.join(directory, part))
            self._disk.sync_directory(directory)
        self._disk.sync_directory(os.path.dirname(directory))
