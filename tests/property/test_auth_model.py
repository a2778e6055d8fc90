"""Who may do what, against the model of `tests.support.auth_cases`: random users and nested requests."""

from collections import Counter

import pytest

from raftkv import errors
from raftkv.auth import AuthStore, Caller
from raftkv.auth.rules import Rules
from raftkv.mvcc import Store
from raftkv.offline.memory import MemoryBackend
from raftkv.pb import log_pb2
from raftkv.pb import rpc_pb2 as pb
from tests.support.auth_cases import KEYS, Cases, Permission, Request, allowed

USERS = 6
REQUESTS = 100
"""Of each world of users."""


class World:
    """Some users with some roles, and leases with keys."""

    def __init__(self, seed: int) -> None:
        self.cases = Cases(seed)
        rng = self.cases.rng
        self.attached = {lease: rng.sample(KEYS, rng.randrange(4)) for lease in (1, 2, 3)}
        self.store = AuthStore(Store(MemoryBackend()))
        self.store.load()
        self.rules = Rules(self.store, lambda lease: self.attached.get(lease, ()))
        roles = {f"r{number}": self.cases.permissions() for number in range(4)}
        for role, permissions in roles.items():
            self.store.role_add(role)
            for permission in permissions:
                self.store.role_grant_permission(pb.AuthRoleGrantPermissionRequest(name=role, perm=permission))
        self.granted: dict[str, list[Permission]] = {}
        for number in range(USERS):
            name = f"u{number}"
            self.store.user_add(pb.AuthUserAddRequest(name=name), b"")
            taken = rng.sample(sorted(roles), rng.randrange(1, 4))
            for role in taken:
                self.store.user_grant_role(name, role)
            self.granted[name] = [permission for role in taken for permission in roles[role]]

    def decides(self, user: str, request: Request) -> bool:
        """Whether the log would let the user do it; or the reader, if it only reads."""
        proposal = log_pb2.Proposal()
        proposal.caller.user, proposal.caller.revision = user, self.store.revision
        try:
            if isinstance(request, pb.RangeRequest):
                self.rules.check_range(Caller(user, self.store.revision), request)
                return True
            if isinstance(request, pb.PutRequest):
                proposal.put.CopyFrom(request)
            elif isinstance(request, pb.DeleteRangeRequest):
                proposal.delete_range.CopyFrom(request)
            elif isinstance(request, pb.TxnRequest):
                proposal.txn.CopyFrom(request)
            else:
                proposal.lease_revoke.CopyFrom(request)
            self.rules.check_proposal(proposal.WhichOneof("operation") or "", proposal)
        except errors.PermissionDenied:
            return False
        return True


def compare(seed: int) -> Counter[tuple[str, bool]]:
    world = World(seed)
    decided: Counter[tuple[str, bool]] = Counter()
    for _ in range(REQUESTS):
        user, request = world.cases.rng.choice(sorted(world.granted)), world.cases.request()
        expected = allowed(world.granted[user], request, world.attached)
        assert world.decides(user, request) is expected, (world.granted[user], request, world.attached)
        decided[type(request).__name__, expected] += 1
    return decided


def compare_many(cases: int) -> None:
    decided: Counter[tuple[str, bool]] = Counter()
    for seed in range(cases // REQUESTS):
        decided += compare(seed)
    # Each kind was allowed and denied often enough to mean something.
    assert len(decided) == 10
    assert min(decided.values()) > cases // 200


def test_the_rules_equal_the_model() -> None:
    compare_many(5_000)


@pytest.mark.soak
def test_the_rules_equal_the_model_at_length() -> None:
    compare_many(200_000)


@pytest.mark.parametrize("seed", range(20))
def test_root_may_do_everything(seed: int) -> None:
    world = World(seed)
    world.store.user_add(pb.AuthUserAddRequest(name="admin"), b"")
    world.store.user_grant_role("admin", "root")
    assert all(world.decides("admin", world.cases.request()) for _ in range(50))
