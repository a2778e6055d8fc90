"""The holes that were found in etcd's access control, one by one; each test bears the name of its report."""

import random
from collections.abc import Callable

import pytest

from raftkv import errors
from raftkv.auth import Caller
from raftkv.auth.rules import Rules
from raftkv.lease import LeaseStore
from raftkv.mvcc import Store
from raftkv.mvcc.validate import put_cost
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import auth_pb2, log_pb2
from raftkv.pb import rpc_pb2 as pb
from raftkv.raft import Entry, EntryKind
from raftkv.server import proposals as p
from raftkv.server.apply import Applier
from raftkv.server.headers import Headers
from raftkv.server.membership import Membership
from raftkv.watch import span

READ, WRITE, READWRITE = auth_pb2.Permission.READ, auth_pb2.Permission.WRITE, auth_pb2.Permission.READWRITE


class World:
    """A user `u` who may read and write `own`, and only write `drop`; a lease 1 with a key of somebody else."""

    def __init__(self) -> None:
        store = Store(MemoryBackend())
        self.leases = LeaseStore(store)
        pending = p.Proposals(None, 1, random.Random(1), timeout_seconds=7.0)  # type: ignore[arg-type]
        self.applier = Applier(store, self.leases, Membership(store), pending, Headers(1, 1))
        self.auth = self.applier.auth
        self.auth.user_add(pb.AuthUserAddRequest(name="root"), b"")
        self.auth.user_grant_role("root", "root")
        self.auth.role_add("r")
        for kind, key in ((READWRITE, b"own"), (WRITE, b"drop")):
            permission = auth_pb2.Permission(permType=kind, key=key)
            self.auth.role_grant_permission(pb.AuthRoleGrantPermissionRequest(name="r", perm=permission))
        self.auth.user_add(pb.AuthUserAddRequest(name="u"), b"")
        self.auth.user_grant_role("u", "r")
        self.leases.grant(1, 60)
        self.leases.grant(2, 60)
        store.put(pb.PutRequest(key=b"secret", value=b"s", lease=1))
        store.put(pb.PutRequest(key=b"own", value=b"mine", lease=2))
        self.store = store
        self.auth.enable()

    @property
    def rules(self) -> Rules:
        return self.applier.rules

    def caller(self, user: str = "u") -> Caller:
        return Caller(user, self.auth.revision)

    def allows(self, **operation: object) -> bool:
        """Whether user u gets past the rules with `put=…`, `txn=…`."""
        proposal = log_pb2.Proposal(**operation)  # type: ignore[arg-type]
        proposal.caller.user, proposal.caller.revision = "u", self.auth.revision
        try:
            self.rules.check_proposal(proposal.WhichOneof("operation") or "", proposal)
        except errors.PermissionDenied:
            return False
        return True


def op(request: pb.PutRequest | pb.RangeRequest | pb.DeleteRangeRequest | pb.TxnRequest) -> pb.RequestOp:
    name = {"PutRequest": "put", "RangeRequest": "range", "DeleteRangeRequest": "delete_range", "TxnRequest": "txn"}
    return pb.RequestOp(**{f"request_{name[type(request).__name__]}": request})  # type: ignore[arg-type]


def deep(request: pb.RequestOp, depth: int, *, failure: bool) -> pb.TxnRequest:
    txn = pb.TxnRequest(**{"failure" if failure else "success": [request]})  # type: ignore[arg-type]
    return txn if not depth else deep(op(txn), depth - 1, failure=failure)


FORBIDDEN = [
    op(pb.RangeRequest(key=b"secret")),
    op(pb.PutRequest(key=b"secret")),
    op(pb.DeleteRangeRequest(key=b"secret")),
    op(pb.DeleteRangeRequest(key=b"own", range_end=b"z")),
    op(pb.RangeRequest(key=b"own", range_end=b"\0")),
]


@pytest.mark.parametrize("failure", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2, 7])
@pytest.mark.parametrize("case", range(len(FORBIDDEN)))
def test_cve_2026_33343_a_nested_transaction_is_no_way_around(case: int, depth: int, failure: bool) -> None:
    world = World()
    assert not world.allows(txn=deep(FORBIDDEN[case], depth, failure=failure))
    assert world.allows(txn=deep(op(pb.PutRequest(key=b"own")), depth, failure=failure))


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_cve_2026_33343_compares_of_nested_transactions_read(depth: int) -> None:
    txn = pb.TxnRequest(compare=[pb.Compare(key=b"secret", target=pb.Compare.VALUE, value=b"s")])
    assert not World().allows(txn=deep(op(txn), depth, failure=True))


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_cve_2026_44283_a_previous_value_is_read(depth: int) -> None:
    world = World()
    assert not world.allows(put=pb.PutRequest(key=b"drop", prev_kv=True))
    assert not world.allows(delete_range=pb.DeleteRangeRequest(key=b"drop", prev_kv=True))
    for request in (pb.PutRequest(key=b"drop", prev_kv=True), pb.DeleteRangeRequest(key=b"drop", prev_kv=True)):
        assert not world.allows(txn=deep(op(request), depth, failure=False))
        request.prev_kv = False
        assert world.allows(txn=deep(op(request), depth, failure=False))


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_cve_2026_44283_whoever_attaches_a_key_to_a_lease_could_delete_all_its_keys(depth: int) -> None:
    world = World()
    foreign, own = (pb.PutRequest(key=b"own", lease=lease) for lease in (1, 2))
    assert not world.allows(put=foreign)
    assert not world.allows(txn=deep(op(foreign), depth, failure=False))
    assert world.allows(put=own)
    assert world.allows(txn=deep(op(own), depth, failure=False))
    assert not world.allows(lease_revoke=pb.LeaseRevokeRequest(ID=1))
    assert world.allows(lease_revoke=pb.LeaseRevokeRequest(ID=2))


def test_ghsa_xg4h_6gfc_h4m8_a_watch_from_a_key_on_needs_all_that_follows() -> None:
    world = World()

    def may_watch(key: bytes, range_end: bytes) -> bool:
        try:
            world.auth.check_read(world.caller(), span(pb.WatchCreateRequest(key=key, range_end=range_end)))
        except errors.PermissionDenied:
            return False
        return True

    assert may_watch(b"own", b"")
    assert not may_watch(b"own", b"\0")
    assert not may_watch(b"own", b"own\0\0")
    assert not may_watch(b"", b"\0")
    assert not may_watch(b"", b"")


@pytest.mark.parametrize("name", ["compaction", "alarm", "auth_disable", "user_add", "role_grant_permission"])
def test_cve_2026_33413_what_concerns_all_is_root_s(name: str) -> None:
    world = World()
    proposal = log_pb2.Proposal()
    getattr(proposal, name).SetInParent()
    if name == "alarm":
        proposal.alarm.action = pb.AlarmRequest.DEACTIVATE
    with pytest.raises(errors.UserEmpty):
        world.rules.check_proposal(name, proposal)
    proposal.caller.user, proposal.caller.revision = "u", world.auth.revision
    with pytest.raises(errors.PermissionDenied):
        world.rules.check_proposal(name, proposal)
    proposal.caller.user = "root"
    world.rules.check_proposal(name, proposal)


def test_cve_2026_33413_alarms_are_told_to_users_only() -> None:
    world = World()
    proposal = log_pb2.Proposal(alarm=pb.AlarmRequest(action=pb.AlarmRequest.GET))
    with pytest.raises(errors.UserEmpty):
        world.rules.check_proposal("alarm", proposal)
    proposal.caller.user, proposal.caller.revision = "nobody", world.auth.revision
    with pytest.raises(errors.PermissionDenied):
        world.rules.check_proposal("alarm", proposal)
    proposal.caller.user = "u"
    world.rules.check_proposal("alarm", proposal)


def test_an_operation_that_nobody_thought_of_is_refused() -> None:
    proposal = log_pb2.Proposal()
    proposal.caller.user, proposal.caller.revision = "root", 1000
    with pytest.raises(errors.PermissionDenied):
        World().rules.check_proposal("something_new", proposal)


def test_every_operation_of_the_log_has_its_rule() -> None:
    """Without a caller nothing passes, but what members do by themselves and log-ins, which prove themselves."""
    world = World()
    passed = set()
    for field in log_pb2.Proposal.DESCRIPTOR.oneofs_by_name["operation"].fields:
        proposal = log_pb2.Proposal()
        getattr(proposal, field.name).SetInParent()
        try:
            world.rules.check_proposal(field.name, proposal)
        except errors.UserEmpty:
            continue
        passed.add(field.name)
    assert passed == {"member_attributes", "lease_expiry", "lease_checkpoints", "log_in"}


def test_pr_15815_the_keys_of_a_lease_are_shown_to_who_may_read_them() -> None:
    world = World()
    with pytest.raises(errors.PermissionDenied):
        world.rules.check_keys_read(world.caller(), [b"own", b"secret"])
    world.rules.check_keys_read(world.caller(), [b"own"])


def test_a_renewal_needs_what_a_revocation_needs() -> None:
    world = World()
    with pytest.raises(errors.PermissionDenied):
        world.rules.check_renewal(world.caller(), 1)
    world.rules.check_renewal(world.caller(), 2)


def forge_nothing(proposal: log_pb2.Proposal) -> None:
    """As it is when nobody said who they are."""


def forge_old(proposal: log_pb2.Proposal) -> None:
    proposal.caller.user, proposal.caller.revision = "u", 1


@pytest.mark.parametrize("forge", [forge_nothing, forge_old])
@pytest.mark.parametrize("alarm", [pb.NONE, pb.NOSPACE, pb.CORRUPT])
def test_pr_22386_an_alarm_does_not_let_anybody_in(
    alarm: "pb.AlarmType", forge: Callable[[log_pb2.Proposal], None]
) -> None:
    world = World()
    if alarm != pb.NONE:
        world.applier.alarms.apply(pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=1, alarm=alarm))
    proposals = [log_pb2.Proposal(id=1, delete_range=pb.DeleteRangeRequest(key=b"own", range_end=b"\0"))]
    proposals.append(log_pb2.Proposal(id=2, lease_revoke=pb.LeaseRevokeRequest(ID=1)))
    proposals.append(log_pb2.Proposal(id=3, auth_disable=pb.AuthDisableRequest()))
    for proposal in proposals:
        forge(proposal)
    revision = world.store.revision
    world.applier.apply([Entry(1, 1, EntryKind.NORMAL, log_pb2.Batch(proposals=proposals).SerializeToString())])
    assert world.store.revision == revision
    assert world.auth.enabled
    assert world.leases.get(1) is not None


def test_pr_15619_a_role_that_grants_nothing_grants_nothing() -> None:
    """Empty permissions, and none at all, once stopped a member that looked a user's rights up."""
    world = World()
    for role in ("none", "emptied", "of nothing"):
        world.auth.role_add(role)
    permission = auth_pb2.Permission(permType=READWRITE, key=b"x", range_end=b"\0")
    world.auth.role_grant_permission(pb.AuthRoleGrantPermissionRequest(name="emptied", perm=permission))
    world.auth.role_revoke_permission("emptied", b"x", b"\0")
    for key, end in ((b"", b"\0"), (b"", b""), (b"z", b"a"), (b"z", b"z")):
        empty = auth_pb2.Permission(permType=READWRITE, key=key, range_end=end)
        with pytest.raises(errors.InvalidAuthMgmt):
            world.auth.role_grant_permission(pb.AuthRoleGrantPermissionRequest(name="of nothing", perm=empty))
    for user, role in (("a", "none"), ("b", "emptied"), ("c", "of nothing")):
        world.auth.user_add(pb.AuthUserAddRequest(name=user), b"")
        world.auth.user_grant_role(user, role)
    for user in "abc":
        for key, end in ((b"own", b""), (b"a", b"z"), (b"z", b"a"), (b"m", b"m"), (b"", b"\0"), (b"\0", b"\0")):
            with pytest.raises(errors.PermissionDenied):
                world.rules.check_range(world.caller(user), pb.RangeRequest(key=key, range_end=end))


@pytest.mark.parametrize("failure", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 7])
def test_pr_22139_the_puts_of_nested_transactions_count_against_the_quota(depth: int, failure: bool) -> None:
    put = op(pb.PutRequest(key=b"own", value=b"v" * 10_000))
    assert put_cost(deep(put, depth, failure=failure)) == put_cost(pb.TxnRequest(success=[put])) > 10_000
    world = World()
    full = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=1, alarm=pb.NOSPACE)
    world.applier.alarms.apply(full)
    revision = world.store.revision
    proposal = log_pb2.Proposal(id=1, txn=deep(put, depth, failure=failure))
    proposal.caller.user, proposal.caller.revision = "u", world.auth.revision
    entry = Entry(1, 1, EntryKind.NORMAL, log_pb2.Batch(proposals=[proposal]).SerializeToString())
    world.applier.apply([entry])
    assert world.store.revision == revision
