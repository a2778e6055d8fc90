"""Bugs on purpose of stores, their copies, and what they keep besides keys: more of `raftkv.simulation.mutants`."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from raftkv.mvcc import META, LmdbBackend
from raftkv.mvcc.gathering import Gathering
from raftkv.pb import log_pb2
from raftkv.raft import Entry, EntryKind, InstallSnapshot
from raftkv.server.apply import _APPLIED, Applier, applied_position, set_applied_position
from raftkv.server.backup import SENDING
from raftkv.server.flushes import Flushes
from raftkv.server.snapshot_transfer import Receiving, Transfers

_ROLES = frozenset({"role_add", "role_delete"})


def defragments_over_a_snapshot() -> None:
    """A copy without gaps takes the place of the store that a snapshot brought meanwhile (etcd #20271)."""

    async def defragment(self: Any, data_dir: str) -> tuple[int, int]:
        await self.flushed()
        while self._busy:
            await self.flushed()
        self._busy = True
        host, backend = self._host, self._host.store.backend
        try:
            copied = await host.aside(partial(backend.copy_aside, os.path.join(data_dir, SENDING)))
            await self._settle(backend.adopt(copied, os.path.join(data_dir, "store")))
        finally:
            self._ended()
            if backend is not host.store.backend:
                host.retire(backend)
        return backend.size_bytes, backend.size_bytes

    Flushes._defragment = defragment  # type: ignore[method-assign]


def defragments_without_the_applied_index() -> None:
    """A copy without gaps does not say what is applied in it (etcd PR 14685)."""

    def copy_aside(self: LmdbBackend, scratch: str) -> Any:
        copied = original(self, scratch)
        with copied.begin(write=True, db=copied.open_db(META)) as transaction:
            transaction.delete(_APPLIED)
        return copied

    original: Callable[[LmdbBackend, str], Any] = LmdbBackend.copy_aside
    LmdbBackend.copy_aside = copy_aside  # type: ignore[method-assign]


def roles_do_not_move_the_applied_index() -> None:
    """What changes users and roles alone leaves the stored applied index where it was (etcd #11651)."""

    def apply(self: Applier, entries: Sequence[Entry], **more: Any) -> int:
        stored = applied_position(self._store.backend)
        count = original(self, entries, **more)
        for entry in entries[:count]:
            if not _changes_roles(entry):
                stored = entry.index, entry.term
        if count:
            set_applied_position(self._store, *stored)
        return count

    original: Callable[..., int] = Applier.apply
    Applier.apply = apply  # type: ignore[method-assign]


def _changes_roles(entry: Entry) -> bool:
    if entry.kind is EntryKind.CONF_CHANGE or not entry.data:
        return False
    return all(one.WhichOneof("operation") in _ROLES for one in log_pb2.Batch.FromString(entry.data).proposals)


def users_of_before_a_snapshot() -> None:
    """Who installs a snapshot goes on with the users and roles it had (etcd #14571)."""

    def load(self: Applier) -> None:
        if not hasattr(self, "index"):
            original(self)
        self.index, self.term = applied_position(self._store.backend)
        self.alarms.load()

    original: Callable[[Applier], None] = Applier.load
    Applier.load = load  # type: ignore[method-assign]


def takes_two_snapshots_at_once() -> None:
    """A snapshot is taken while another one arrives (etcd #18055)."""

    def begin(self: Transfers, message: InstallSnapshot) -> Receiving:
        self._arriving = None
        return original(self, message)

    original: Callable[[Transfers, InstallSnapshot], Receiving] = Transfers.begin
    Transfers.begin = begin  # type: ignore[method-assign]


def lists_what_changed_meanwhile() -> None:
    """A range that is read a slice at a time shows what was written after its first slice, as of another moment."""
    Gathering.note = lambda *_: None  # type: ignore[method-assign]


STORE_MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__.replace("_", "-"): mutant
    for mutant in (
        defragments_over_a_snapshot,
        defragments_without_the_applied_index,
        roles_do_not_move_the_applied_index,
        users_of_before_a_snapshot,
        takes_two_snapshots_at_once,
        lists_what_changed_meanwhile,
    )
}
