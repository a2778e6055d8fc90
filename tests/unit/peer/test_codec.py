"""Every kind of message survives the wire, and the wire is what peer.proto says."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from raftkv.pb import peer_pb2
from raftkv.peer import codec
from raftkv.raft import (
    AppendEntries,
    AppendEntriesResponse,
    ConfState,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    Propose,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    SnapshotMetadata,
    TimeoutNow,
)

u64 = st.integers(0, 2**64 - 1)
ids = st.tuples(u64, u64, u64)
nodes = st.lists(u64, max_size=3).map(tuple)
entries = st.lists(st.builds(Entry, u64, u64, st.sampled_from(EntryKind), st.binary(max_size=300)), max_size=4)
conf_states = st.builds(
    ConfState, voters=nodes, learners=nodes, voters_outgoing=nodes, learners_next=nodes, auto_leave=st.booleans()
)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(RequestVote, u64, u64, u64, u64, u64, st.booleans(), st.booleans()),
    st.builds(RequestVoteResponse, u64, u64, u64, st.booleans(), st.booleans()),
    st.builds(AppendEntries, u64, u64, u64, u64, u64, entries, u64),
    st.builds(AppendEntriesResponse, u64, u64, u64, st.booleans(), u64, u64, u64),
    st.builds(Heartbeat, u64, u64, u64, u64, st.binary(max_size=20)),
    st.builds(HeartbeatResponse, u64, u64, u64, st.binary(max_size=20)),
    st.builds(InstallSnapshot, u64, u64, u64, st.builds(SnapshotMetadata, index=u64, term=u64, conf_state=conf_states)),
    st.builds(TimeoutNow, u64, u64, u64),
    st.builds(Propose, u64, u64, u64, st.lists(st.binary(max_size=20), max_size=3).map(tuple)),
    st.builds(ReadIndex, u64, u64, u64, st.binary(max_size=20)),
    st.builds(ReadIndexResponse, u64, u64, u64, st.binary(max_size=20), u64),
)


@given(st.lists(messages, max_size=5))
def test_a_batch_comes_back_as_it_was(sent: list[Message]) -> None:
    batch = b"".join(codec.encode_framed(message) for message in sent)
    assert list(codec.decode_batch(batch)) == sent


@given(messages)
def test_framing_by_hand_equals_protobufs(message: Message) -> None:
    batch = peer_pb2.MessageBatch(messages=[codec.encode(message)])
    assert codec.encode_framed(message) == batch.SerializeToString()


def test_the_strategy_covers_every_kind() -> None:
    kinds = {kind.name for kind in peer_pb2.Message.DESCRIPTOR.oneofs_by_name["kind"].fields}
    assert len(kinds) == len(Message.__args__)
    assert kinds == {codec.encode(message).WhichOneof("kind") for message in _one_of_each()}


def test_a_kind_from_the_future_is_left_out() -> None:
    known = TimeoutNow(1, 2, 3)
    unknown = peer_pb2.MessageBatch(messages=[peer_pb2.Message(sender=1, to=2, term=3)]).SerializeToString()
    batch = codec.encode_framed(known) + unknown + codec.encode_framed(known)
    assert list(codec.decode_batch(batch)) == [known, known]


def test_bytes_that_are_no_batch_are_refused() -> None:
    with pytest.raises(DecodeError):
        list(codec.decode_batch(b"\x0a\xff"))


def _one_of_each() -> list[Message]:
    conf_state = ConfState(voters=(1,))
    return [
        RequestVote(1, 2, 3, 4, 5, False, False),
        RequestVoteResponse(1, 2, 3, False, False),
        AppendEntries(1, 2, 3, 0, 0, [], 0),
        AppendEntries(1, 2, 3, 7, 2, [], 7, silent=True),
        AppendEntriesResponse(1, 2, 3, False, 0, 0, 0),
        Heartbeat(1, 2, 3, 0, b""),
        HeartbeatResponse(1, 2, 3, b""),
        InstallSnapshot(1, 2, 3, SnapshotMetadata(index=1, term=1, conf_state=conf_state)),
        TimeoutNow(1, 2, 3),
        Propose(1, 2, 3, ()),
        ReadIndex(1, 2, 3, b""),
        ReadIndexResponse(1, 2, 3, b"", 0),
    ]
