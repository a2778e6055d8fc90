"""Raft's state after a start: what the log holds, and who the members were at its points."""

from raftkv.mvcc import Store
from raftkv.raft import Config, Entry, EntryKind, HardState, RaftNode
from raftkv.server.apply import applied_position
from raftkv.server.membership import Membership
from raftkv.wal import WalContents


def restored_node(config: Config, contents: WalContents | None, store: Store, membership: Membership) -> RaftNode:
    """A node that goes on from what log and store hold; without a log, from the beginning."""
    found = contents or WalContents(b"")
    term, voted_for, commit = found.hard_state
    snapshot_index, snapshot_term, _ = found.snapshot
    before = [conf_state for index, conf_state in membership.points if index <= snapshot_index]
    node = RaftNode(
        config,
        before[-1] if before else membership.conf_state,
        HardState(term=term, voted_for=voted_for, commit=commit),
        [Entry(term, index, EntryKind(kind), data) for term, index, kind, data in found.entries],
        snapshot_index=snapshot_index,
        snapshot_term=snapshot_term,
        applied=applied_position(store.backend)[0],
    )
    for index, conf_state in membership.points:
        if index > snapshot_index:
            # The store has applied it already, and it will not be applied again.
            node.apply_conf_state(conf_state, index)
    return node
