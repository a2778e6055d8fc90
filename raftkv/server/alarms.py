"""Alarms: what is wrong with which member, known to all of them through the log.

While NOSPACE is on, whatever takes space is refused, on every member alike; while CORRUPT is on, every write. An alarm
stays on until it is disarmed.
"""

from collections.abc import Sequence

from raftkv import errors
from raftkv.mvcc import Store
from raftkv.mvcc.validate import put_cost
from raftkv.pb import log_pb2, rpc_pb2

_ALARMS = b"alarms"

GET, ACTIVATE, DEACTIVATE = (rpc_pb2.AlarmRequest.GET, rpc_pb2.AlarmRequest.ACTIVATE, rpc_pb2.AlarmRequest.DEACTIVATE)
NONE, NOSPACE, CORRUPT = rpc_pb2.NONE, rpc_pb2.NOSPACE, rpc_pb2.CORRUPT

# Leases go on to expire: what is left of them is known to all, and a refusal would be asked for again and again.
_WRITES = ("put", "delete_range", "txn", "compaction", "lease_grant", "lease_revoke")


class Alarms:
    """The alarms that are on, stored beside the keys."""

    def __init__(self, store: Store) -> None:
        """Load them; an empty store has none."""
        self._store = store
        self._on: set[tuple[rpc_pb2.AlarmType, int]] = set()
        self.load()

    def load(self) -> None:
        """Take what the store has now."""
        stored = rpc_pb2.AlarmResponse.FromString(self._store.get_meta(_ALARMS) or b"")
        self._on = {(one.alarm, one.memberID) for one in stored.alarms}

    def forget(self) -> None:
        """Let there be none: the members they are about are no more."""
        self._on.clear()
        self._store.set_meta(_ALARMS, b"")

    def get(self, kind: "rpc_pb2.AlarmType" = NONE) -> list[rpc_pb2.AlarmMember]:
        """Alarms of a kind, or all, by kind and member."""
        return [
            rpc_pb2.AlarmMember(memberID=member, alarm=alarm)
            for alarm, member in sorted(self._on)
            if kind in (NONE, alarm)
        ]

    def names(self) -> Sequence[str]:
        """The kinds that are on, of any member."""
        return [rpc_pb2.AlarmType.Name(alarm) for alarm in sorted({alarm for alarm, _ in self._on})]

    def texts(self) -> Sequence[str]:
        """Each alarm as etcd writes it."""
        return [alarm_text(one) for one in self.get()]

    def is_on(self, kind: "rpc_pb2.AlarmType", member: int) -> bool:
        """Whether this alarm is on for this member."""
        return (kind, member) in self._on

    def apply(self, request: rpc_pb2.AlarmRequest) -> list[rpc_pb2.AlarmMember]:
        """Do what a request says; the alarms it was about. Disarming what is not on is about none."""
        one = (request.alarm, request.memberID)
        if request.action == GET:
            return self.get(request.alarm)
        if request.action == ACTIVATE and request.alarm != NONE:
            self._on.add(one)
        elif request.action == DEACTIVATE and one in self._on:
            self._on.remove(one)
        else:
            return []
        stored = rpc_pb2.AlarmResponse(alarms=self.get())
        self._store.set_meta(_ALARMS, stored.SerializeToString())
        return [rpc_pb2.AlarmMember(memberID=request.memberID, alarm=request.alarm)]

    def check(self, name: str, proposal: log_pb2.Proposal) -> None:
        """Refuse an operation that an alarm forbids, before it changes anything.

        Raises:
            NoSpace, Corrupt
        """
        if not self._on:
            return
        kinds = {alarm for alarm, _ in self._on}
        if CORRUPT in kinds and name in _WRITES:
            raise errors.Corrupt
        if NOSPACE in kinds and (name in ("put", "lease_grant") or (name == "txn" and put_cost(proposal.txn) > 0)):
            raise errors.NoSpace


def alarm_text(one: rpc_pb2.AlarmMember) -> str:
    """An alarm as etcd and etcdctl write it, with the blank at the end."""
    return f"memberID:{one.memberID} alarm:{rpc_pb2.AlarmType.Name(one.alarm)} "
