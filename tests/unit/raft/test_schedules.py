"""Bad schedules that broke Raft implementations, each as short as it can be told."""

import random

import pytest

from raftkv.raft import (
    AppendEntries,
    AppendEntriesResponse,
    Config,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InvariantViolation,
    ProposalDropped,
    RaftNode,
    ReadIndex,
    ReadIndexResponse,
    RequestVoteResponse,
    Role,
    SnapshotMetadata,
    TimeoutNow,
)
from tests.unit.raft.group import Group


def entry(term: int, index: int, data: bytes = b"x") -> Entry:
    return Entry(term, index, EntryKind.NORMAL, data)


def start(log: list[int], *, commit: int = 0, applied: int = 0, voters: tuple[int, ...] = (1, 2, 3)) -> RaftNode:
    """Node 1 with a log of these terms."""
    return RaftNode(
        Config(id=1, random=random.Random(1), pre_vote=False),
        ConfState(voters=voters),
        HardState(term=max(log, default=0), commit=commit),
        [entry(term, index) for index, term in enumerate(log, 1)],
        applied=applied,
    )


def lead(node: RaftNode) -> RaftNode:
    """Make it the leader of its next term; what it owes is taken and durable, nothing is committed."""
    node.campaign()
    node.advance(node.ready())
    node.step(RequestVoteResponse(2, 1, node.term, True, False))
    assert node.role is Role.LEADER
    node.advance(node.ready())
    return node


def test_a_write_that_was_undone_and_redone_is_durable_only_the_second_time() -> None:
    """ABA: 1/1 is written, replaced by 1/2, then 1/1 returns from a leader of term 3. The first write is about to be
    undone by the second, so its end proves nothing though index and term agree."""
    node = start([])
    node.step(AppendEntries(2, 1, 1, 0, 0, [entry(1, 1)], 0))
    first = node.ready()
    node.step(AppendEntries(3, 1, 2, 0, 0, [entry(2, 1)], 0))
    second = node.ready()
    node.step(AppendEntries(2, 1, 3, 0, 0, [entry(1, 1)], 1))
    third = node.ready()
    node.advance(first)
    assert not node.ready().committed
    node.advance(second)
    assert not node.ready().committed
    node.advance(third)
    assert [e.term for e in node.ready().committed] == [1]


def test_the_part_of_a_write_that_still_stands_is_durable() -> None:
    node = start([])
    node.step(AppendEntries(2, 1, 1, 0, 0, [entry(1, 1), entry(1, 2)], 1))
    first = node.ready()
    node.step(AppendEntries(3, 1, 2, 1, 1, [entry(2, 2)], 1))
    node.ready()
    node.advance(first)
    assert [e.index for e in node.ready().committed] == [1]


def test_lost_appends_do_not_hold_a_window_full_of_bytes_for_ever() -> None:
    group = Group(3, max_inflight_bytes=100)
    group.elect(1)
    for _ in range(3):
        group.nodes[1].propose([b"x" * 90])
        group.take(1)
    group.settle(lambda message: message.to == 3)
    for _ in range(4):
        group.tick(1)
        group.settle()
    assert group.nodes[3].last_index == group.nodes[1].last_index


def test_acknowledgements_of_an_earlier_read_confirm_no_later_one_of_the_same_name() -> None:
    """A follower repeats its request under the same context; an answer to the first round's heartbeat comes late."""
    leader = lead(start([1], commit=1))
    leader.step(AppendEntriesResponse(2, 1, 2, False, 2, 0, 0))
    leader.step(AppendEntriesResponse(3, 1, 2, False, 2, 0, 0))
    leader.advance(leader.ready())
    leader.step(ReadIndex(3, 1, 0, b"again"))
    first = next(m for m in leader.ready().messages if isinstance(m, Heartbeat))
    leader.step(HeartbeatResponse(2, 1, 2, first.context))
    assert any(isinstance(m, ReadIndexResponse) for m in leader.ready().messages)
    leader.step(ReadIndex(3, 1, 0, b"again"))
    leader.ready()
    leader.step(HeartbeatResponse(3, 1, 2, first.context))
    assert not any(isinstance(m, ReadIndexResponse) for m in leader.ready().messages)


def test_a_read_that_comes_after_the_heartbeats_left_is_not_confirmed_by_their_answers() -> None:
    """The followers may have answered before another leader committed what the later read must see."""
    leader = lead(start([1], commit=1))
    leader.step(AppendEntriesResponse(2, 1, 2, False, 2, 0, 0))
    leader.advance(leader.ready())
    leader.read_index(b"early")
    leader.read_index(b"joins it")
    (first,) = {m.context for m in leader.ready().messages if isinstance(m, Heartbeat)}
    leader.read_index(b"late")
    leader.step(HeartbeatResponse(2, 1, 2, first))
    assert [state.context for state in leader.ready().read_states] == [b"early", b"joins it"]


def test_news_of_a_commit_is_answered_only_when_it_shows_that_an_append_was_lost() -> None:
    group = Group(3)
    group.elect(1)
    group.nodes[1].propose([b"one"])
    group.take(1)
    group.settle(lambda message: isinstance(message, AppendEntries) and message.silent)
    assert [node.commit_index for node in group.nodes.values()] == [2, 1, 1]
    group.nodes[1].propose([b"two"])
    group.take(1)
    answers: list[AppendEntriesResponse] = []
    group.on_send = lambda m: answers.append(m) if isinstance(m, AppendEntriesResponse) else None
    lost = [m for m in group.network if isinstance(m, AppendEntries) and m.to == 3]
    group.settle(lambda m: any(m is each for each in lost))
    assert [node.commit_index for node in group.nodes.values()] == [3, 3, 3]
    assert [(a.sender, a.rejected) for a in answers] == [(2, False), (3, True), (3, False)]


@pytest.mark.parametrize("window", [1, 256])
def test_acknowledgements_that_were_all_lost_are_asked_for_again(window: int) -> None:
    """The follower has everything, the leader does not know, and nobody proposes anything more."""
    group = Group(2, max_inflight_messages=window)
    group.elect(1)
    group.nodes[1].propose([b"one"])
    group.take(1)
    group.settle(lambda message: isinstance(message, AppendEntriesResponse))
    assert group.nodes[1].commit_index == 1
    group.tick(1)
    group.settle()
    assert group.nodes[1].commit_index == 2


def test_a_member_added_after_the_snapshot_point_installs_a_snapshot_that_does_not_know_it() -> None:
    newcomer = RaftNode(Config(id=4, random=random.Random(1)), ConfState(voters=()), HardState(), [])
    metadata = SnapshotMetadata(index=8, term=1, conf_state=ConfState(voters=(1, 2, 3)))
    newcomer.step(InstallSnapshot(1, 4, 1, metadata))
    assert newcomer.ready().snapshot == metadata


def test_a_voter_that_was_just_added_has_an_election_timeout_to_answer() -> None:
    """CheckQuorum must not depose the leader for the silence of one that it has only begun to speak to."""
    leader = lead(start([1], commit=1, applied=1))
    leader.step(AppendEntriesResponse(2, 1, 2, False, 2, 0, 0))
    for _ in range(9):
        leader.tick()
    leader.apply_conf_state(ConfState(voters=(1, 2, 4, 5)), 9)
    leader.tick()
    assert leader.role is Role.LEADER


def test_what_was_applied_while_a_snapshot_overtook_it_is_no_news() -> None:
    node = start([1, 1], commit=2)
    assert len(node.ready().committed) == 2
    node.step(InstallSnapshot(2, 1, 1, SnapshotMetadata(index=9, term=1, conf_state=ConfState(voters=(1, 2, 3)))))
    node.applied_to(2)
    assert node.applied == 9


def test_two_members_may_use_the_same_read_context() -> None:
    group = Group(3)
    group.elect(1)
    for member in (2, 3):
        group.reads[b"same"] = len(group.committed)
        group.nodes[member].read_index(b"same")
        group.take(member)
    group.settle()
    assert sorted(at for at, _ in group.answers) == [2, 3]


@pytest.mark.parametrize("broken", ["advance", "applied_to", "compact"])
def test_a_rule_broken_through_any_door_poisons_the_node(broken: str) -> None:
    node = start([1])
    ready = node.ready()
    with pytest.raises(InvariantViolation):
        {
            "advance": lambda: (node.advance(ready), node.advance(ready)),
            "applied_to": lambda: node.applied_to(9),
            "compact": lambda: node.compact(1),
        }[broken]()
    with pytest.raises(InvariantViolation):
        node.tick()


def test_an_error_nobody_thought_of_poisons_the_node_as_well() -> None:
    """It may have come in the middle of a change; a refused proposal comes before any."""
    node = start([1])
    with pytest.raises(ProposalDropped):
        node.propose([b"nobody leads"])
    node.tick()
    with pytest.raises(AttributeError):
        node.step(None)  # type: ignore[arg-type]
    with pytest.raises(InvariantViolation):
        node.tick()


def test_messages_leave_without_a_ready_only_where_nothing_else_is_owed() -> None:
    node = start([1])
    node.step(Heartbeat(2, 1, 1, 0, b""))
    assert node.take_messages() == [], "who leads is news"
    node.advance(node.ready())
    node.step(Heartbeat(2, 1, 1, 0, b""))
    assert node.take_messages() == [HeartbeatResponse(1, 2, 1, b"")]
    assert not node.has_ready()
    node.step(AppendEntries(2, 1, 1, 1, 1, [Entry(1, 2, EntryKind.NORMAL, b"x")], 1, False))
    node.step(Heartbeat(2, 1, 1, 1, b""))
    assert node.take_messages() == [], "the entry comes first"
    ready = node.ready()
    assert ready.entries
    assert ready.messages == [HeartbeatResponse(1, 2, 1, b"")]


def test_nobody_stands_for_election_before_its_snapshot_is_durable() -> None:
    node = start([])
    metadata = SnapshotMetadata(index=9, term=1, conf_state=ConfState(voters=(1, 2, 3)))
    node.step(InstallSnapshot(2, 1, 1, metadata))
    ready = node.ready()
    assert ready.snapshot == metadata
    node.step(TimeoutNow(2, 1, 1))
    node.campaign()
    assert node.role is Role.FOLLOWER
    node.advance(ready)
    node.campaign()
    assert node.role is Role.CANDIDATE


def test_a_new_leader_proposes_no_configuration_before_it_committed_in_its_term() -> None:
    leader = lead(start([1], commit=1, applied=1))
    with pytest.raises(ProposalDropped):
        leader.propose_conf_change(b"early")
    leader.step(AppendEntriesResponse(2, 1, 2, False, 2, 0, 0))
    leader.applied_to(leader.ready().committed[-1].index)
    leader.propose_conf_change(b"now")
    with pytest.raises(ProposalDropped):
        leader.propose_conf_change(b"a second one")


def test_leadership_is_not_handed_to_a_member_that_was_removed_meanwhile() -> None:
    leader = lead(start([1], commit=1, applied=1))
    leader.step(AppendEntriesResponse(2, 1, 2, False, 2, 0, 0))
    leader.transfer_leader(3)
    leader.apply_conf_state(ConfState(voters=(1, 2)), 9)
    leader.propose([b"taken"])
    assert not any(isinstance(m, TimeoutNow) for m in leader.ready().messages)


def test_a_leader_that_is_no_voter_any_more_steps_down() -> None:
    leader = lead(start([1], commit=1))
    leader.apply_conf_state(ConfState(voters=(2, 3), learners=(1,)), 9)
    assert leader.role is Role.FOLLOWER


def test_a_snapshot_names_the_members_of_its_own_point_in_the_log() -> None:
    leader = lead(start([1], commit=1))
    leader.step(AppendEntriesResponse(2, 1, 2, False, 2, 0, 0))
    leader.applied_to(leader.ready().committed[-1].index)
    leader.compact(2)
    leader.apply_conf_state(ConfState(voters=(1, 2, 3), learners=(4,)), 9)
    leader.step(HeartbeatResponse(4, 1, 2, b""))
    leader.step(AppendEntriesResponse(4, 1, 2, True, 2, 0, 0))
    sent = next(m for m in leader.ready().messages if isinstance(m, InstallSnapshot))
    assert sent.metadata == SnapshotMetadata(index=2, term=2, conf_state=ConfState(voters=(1, 2, 3)))


def test_a_follower_whose_window_was_full_when_the_log_was_compacted_gets_no_append_from_nowhere() -> None:
    """raft 76f1249: the term before the log begins is unknown; taken for 0 it agrees with that before everything."""
    group = Group(3, max_inflight_bytes=100)
    group.elect(1)
    leader = group.nodes[1]
    for number in range(6):
        leader.propose([b"%d" % number * 90])
        group.take(1)
        # The third hears of nothing: its window is full from the second entry on.
        group.settle(lambda message: message.to == 3)
    behind = group.nodes[3].last_index
    group.compact(1, leader.commit_index)
    leader.step(AppendEntriesResponse(3, 1, leader.term, True, behind + 1, 0, 0))
    leader.step(HeartbeatResponse(3, 1, leader.term, b""))
    sent = [message for message in leader.ready().messages if message.to == 3]
    assert [type(message) for message in sent] == [InstallSnapshot]


def test_a_follower_that_has_the_snapshot_goes_on_although_nobody_reported_it() -> None:
    """raft d87942f: the acknowledgement that the log can take over from was ignored, and the follower left waiting."""
    leader = lead(start([1], commit=1, applied=1))
    leader.step(AppendEntriesResponse(2, 1, 2, False, 2, 0, 0))
    leader.applied_to(leader.ready().committed[-1].index)
    leader.compact(2)
    leader.step(HeartbeatResponse(3, 1, 2, b""))
    leader.step(AppendEntriesResponse(3, 1, 2, True, 2, 0, 0))
    assert any(isinstance(m, InstallSnapshot) and m.to == 3 for m in leader.ready().messages)
    leader.propose([b"while it is under way"])
    assert not any(m.to == 3 for m in leader.ready().messages)
    leader.step(AppendEntriesResponse(3, 1, 2, False, 2, 0, 0))
    sent = [m for m in leader.ready().messages if isinstance(m, AppendEntries) and m.to == 3]
    assert [(m.prev_log_index, len(m.entries)) for m in sent] == [(2, 1)]


def test_committed_entries_that_come_in_pages_are_neither_skipped_nor_handed_over_twice() -> None:
    """raft 8ecce32: a page was taken for all that is committed."""
    node = RaftNode(
        Config(id=1, random=random.Random(1), max_apply_bytes=25),
        ConfState(voters=(1, 2, 3)),
        HardState(term=1, commit=0),
        [entry(1, index, b"x" * 10) for index in range(1, 10)],
    )
    node.step(AppendEntries(2, 1, 1, 9, 1, [], 9))
    pages: list[list[int]] = []
    commits: list[int] = []
    for _ in range(9):
        ready = node.ready()
        pages.append([one.index for one in ready.committed])
        commits.append(node.commit_index)
        node.advance(ready)
    assert [index for page in pages for index in page] == list(range(1, 10))
    assert max(map(len, pages)) == 2
    assert set(commits) == {9}
    assert not node.has_ready()
