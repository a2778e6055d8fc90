"""What a leader applies at once, and what waits until the others have heard of it."""

import pytest

from raftkv.pb import log_pb2, rpc_pb2
from raftkv.raft import Entry, EntryKind
from raftkv.server import apply
from tests.unit.lease.world import World

LEASE = 7


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(apply, "LONG_KEYS", 3)
    world = World(2)
    world.grant(LEASE, 60)
    for key in (b"a", b"b", b"c"):
        world.put(key, LEASE)
    world.catch_up(world.members[1])
    return world


@pytest.mark.parametrize(
    ("proposal", "long"),
    [
        (log_pb2.Proposal(lease_revoke=rpc_pb2.LeaseRevokeRequest(ID=LEASE)), True),
        (log_pb2.Proposal(lease_revoke=rpc_pb2.LeaseRevokeRequest(ID=8)), False),
        (log_pb2.Proposal(lease_expiry=log_pb2.LeaseExpiry(term=1, grants=1, ids=[8, LEASE])), True),
        (log_pb2.Proposal(delete_range=rpc_pb2.DeleteRangeRequest(key=b"a", range_end=b"d")), True),
        (log_pb2.Proposal(delete_range=rpc_pb2.DeleteRangeRequest(key=b"a", range_end=b"c")), False),
    ],
)
def test_what_deletes_many_keys_waits_and_everything_behind_it(
    world: World, proposal: log_pb2.Proposal, long: bool
) -> None:
    put = log_pb2.Proposal(put=rpc_pb2.PutRequest(key=b"z"))
    batches = [log_pb2.Batch(proposals=[each]).SerializeToString() for each in (put, proposal, put)]
    first = len(world.log) + 1
    entries = [Entry(1, index, EntryKind.NORMAL, data) for index, data in enumerate(batches, first)]
    member = world.members[1]
    before = member.store.revision
    applied = member.applier.apply(entries, until_long=True)
    assert applied == (1 if long else 3)
    assert member.applier.index == first + applied - 1
    if long:
        assert member.store.revision == before + 1
    assert member.applier.apply(entries[applied:]) == len(entries) - applied
    assert member.store.revision == before + (2 if proposal.lease_revoke.ID == 8 else 3)
