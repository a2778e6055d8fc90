"""Which rights a request needs: every key it reads, writes or learns something of, wherever it stands in the request.

A transaction is walked whole: compares, both branches, whatever is nested. A put that asks for the previous value
reads it. Revoking a lease deletes all keys on it, so whoever does that, or attaches a key to it, needs to be allowed to
write them.
"""

from collections.abc import Callable, Iterable

from raftkv import errors
from raftkv.auth.caller import Caller
from raftkv.auth.rights import Rights
from raftkv.auth.store import AuthStore
from raftkv.mvcc.interval import interval
from raftkv.pb import log_pb2, rpc_pb2

LeaseKeys = Callable[[int], Iterable[bytes]]
"""The keys attached to a lease; none if there is no such lease."""

_ROOT_ONLY = frozenset(
    {
        "compaction",
        "auth_enable",
        "auth_disable",
        "user_add",
        "user_delete",
        "user_change_password",
        "user_grant_role",
        "user_revoke_role",
        "role_add",
        "role_delete",
        "role_grant_permission",
        "role_revoke_permission",
    }
)
_MEMBERS_OWN = frozenset({"member_attributes", "lease_expiry", "lease_checkpoints", "log_in"})
"""Operations that no client can ask for as such; a log-in proves itself."""


class Rules:
    """Decides on requests; what it decides is true of the moment in which it is asked."""

    __slots__ = ("_auth", "_lease_keys")

    def __init__(self, auth: AuthStore, lease_keys: LeaseKeys) -> None:
        self._auth = auth
        self._lease_keys = lease_keys

    def check_proposal(self, name: str, proposal: log_pb2.Proposal) -> None:
        """Refuse an operation that is about to be applied.

        Raises:
            UserEmpty, AuthOldRevision, PermissionDenied
        """
        if proposal.caller.member or name in _MEMBERS_OWN:
            return
        caller = Caller(proposal.caller.user, proposal.caller.revision)
        changes_alarms = name == "alarm" and proposal.alarm.action != rpc_pb2.AlarmRequest.GET
        if name in _ROOT_ONLY or changes_alarms:
            self._auth.check_root(caller)
        elif name in ("lease_grant", "alarm"):
            self._auth.check_user(caller)
        elif name == "put":
            self._put(self._auth.rights(caller), proposal.put)
        elif name == "delete_range":
            _delete_range(self._auth.rights(caller), proposal.delete_range)
        elif name == "txn":
            self._txn(self._auth.rights(caller), proposal.txn)
        elif name == "lease_revoke":
            self._lease(self._auth.rights(caller), proposal.lease_revoke.ID)
        else:
            # An operation that nobody thought of here.
            raise errors.PermissionDenied

    def check_range(self, caller: Caller, request: rpc_pb2.RangeRequest) -> None:
        """Raises: UserEmpty, AuthOldRevision, PermissionDenied."""
        self._auth.check_read(caller, interval(request.key, request.range_end))

    def check_txn(self, caller: Caller, request: rpc_pb2.TxnRequest) -> None:
        """Raises: UserEmpty, AuthOldRevision, PermissionDenied."""
        self._txn(self._auth.rights(caller), request)

    def check_renewal(self, caller: Caller, lease_id: int) -> None:
        """Who keeps a lease alive keeps its keys.

        Raises:
            UserEmpty, AuthOldRevision, PermissionDenied
        """
        self._lease(self._auth.rights(caller), lease_id)

    def check_keys_read(self, caller: Caller, keys: Iterable[bytes]) -> None:
        """Raises: UserEmpty, AuthOldRevision, PermissionDenied (of any key)."""
        rights = self._auth.rights(caller)
        for key in keys:
            _read(rights, key)

    def _txn(self, rights: Rights, request: rpc_pb2.TxnRequest) -> None:
        for compare in request.compare:
            _read(rights, compare.key, compare.range_end)
        for branch in (request.success, request.failure):
            for op in branch:
                self._operation(rights, op)

    def _operation(self, rights: Rights, op: rpc_pb2.RequestOp) -> None:
        kind = op.WhichOneof("request")
        if kind == "request_range":
            _read(rights, op.request_range.key, op.request_range.range_end)
        elif kind == "request_put":
            self._put(rights, op.request_put)
        elif kind == "request_delete_range":
            _delete_range(rights, op.request_delete_range)
        elif kind == "request_txn":
            self._txn(rights, op.request_txn)
        else:
            raise errors.PermissionDenied

    def _put(self, rights: Rights, request: rpc_pb2.PutRequest) -> None:
        _write(rights, request.key)
        if request.lease:
            self._lease(rights, request.lease)
        if request.prev_kv:
            _read(rights, request.key)

    def _lease(self, rights: Rights, lease_id: int) -> None:
        if not rights.root:
            for key in self._lease_keys(lease_id):
                _write(rights, key)


def _delete_range(rights: Rights, request: rpc_pb2.DeleteRangeRequest) -> None:
    _write(rights, request.key, request.range_end)
    if request.prev_kv:
        _read(rights, request.key, request.range_end)


def _read(rights: Rights, key: bytes, range_end: bytes = b"") -> None:
    if not rights.may_read(interval(key, range_end)):
        raise errors.PermissionDenied


def _write(rights: Rights, key: bytes, range_end: bytes = b"") -> None:
    if not rights.may_write(interval(key, range_end)):
        raise errors.PermissionDenied
