"""The rules of figure 3.1 of the dissertation and of its sections 3.6 to 3.10, 4.2.3, 6.4, 9.6, 10.2.1, one by one."""

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
    Propose,
    RaftNode,
    RequestVote,
    RequestVoteResponse,
    Role,
    TimeoutNow,
)
from raftkv.raft.progress import Progress
from tests.unit.raft.group import Group


def entry(term: int, index: int, data: bytes = b"x") -> Entry:
    return Entry(term, index, EntryKind.NORMAL, data)


def node(
    log: list[int], *, term: int = 0, voted_for: int = 0, commit: int = 0, size: int = 3, **config: bool
) -> RaftNode:
    """Node 1 whose log has entries of these terms."""
    return RaftNode(
        Config(id=1, random=random.Random(1), **config),
        ConfState(voters=tuple(range(1, size + 1))),
        HardState(term=term or max(log, default=0), voted_for=voted_for, commit=commit),
        [entry(of_term, index) for index, of_term in enumerate(log, 1)],
    )


def answers(core: RaftNode) -> list[object]:
    """What it sends, at once or after an fsync."""
    ready = core.ready()
    core.advance(ready)
    return [*ready.messages, *ready.messages_after_persist]


def votes(core: RaftNode, message: RequestVote) -> bool:
    core.step(message)
    (answer,) = answers(core)
    assert isinstance(answer, RequestVoteResponse)
    return answer.granted


# 3.3, 3.4: terms and elections


def test_a_message_of_a_newer_term_makes_a_leader_follow() -> None:
    group = Group(3)
    group.elect(1)
    group.nodes[1].step(Heartbeat(2, 1, 9, 0, b""))
    assert (group.nodes[1].role, group.nodes[1].term, group.nodes[1].leader) == (Role.FOLLOWER, 9, 2)


def test_a_message_of_an_older_term_is_not_heeded_but_answered_with_the_newer_term() -> None:
    core = node([1], term=5)
    core.step(AppendEntries(2, 1, 3, 1, 1, [entry(3, 2)], 0))
    assert core.last_index == 1
    (answer,) = answers(core)
    assert isinstance(answer, AppendEntriesResponse)
    assert (answer.term, answer.rejected) == (5, True)


def test_a_node_votes_once_in_a_term() -> None:
    core = node([], term=0)
    assert votes(core, RequestVote(2, 1, 1, 0, 0, False, False))
    assert not votes(core, RequestVote(3, 1, 1, 0, 0, False, False))
    assert votes(core, RequestVote(2, 1, 1, 0, 0, False, False))


def test_a_restarted_node_remembers_its_vote() -> None:
    """3.8"""
    core = node([], term=4, voted_for=2)
    assert not votes(core, RequestVote(3, 1, 4, 0, 0, False, False))


@pytest.mark.parametrize(
    ("last_term", "last_index", "granted"),
    [(2, 2, True), (2, 3, True), (3, 1, True), (2, 1, False), (1, 9, False)],
)
def test_only_a_candidate_with_an_up_to_date_log_is_voted_for(last_term: int, last_index: int, granted: bool) -> None:
    """3.6.1"""
    assert votes(node([1, 2]), RequestVote(2, 1, 7, last_index, last_term, False, False)) is granted


def test_a_candidate_needs_a_majority() -> None:
    core = node([], size=5, pre_vote=False)
    core.campaign()
    core.advance(core.ready())
    core.step(RequestVoteResponse(2, 1, 1, True, False))
    core.step(RequestVoteResponse(2, 1, 1, True, False))
    assert core.role is Role.CANDIDATE, "a vote told twice counts once"
    core.step(RequestVoteResponse(3, 1, 1, True, False))
    assert core.role is Role.LEADER


def test_a_candidate_that_a_majority_refuses_follows_again() -> None:
    core = node([], pre_vote=False)
    core.campaign()
    core.advance(core.ready())
    for voter in (2, 3):
        core.step(RequestVoteResponse(voter, 1, 1, False, False))
    assert core.role is Role.FOLLOWER


def test_election_timeouts_differ() -> None:
    waits = set()
    for seed in range(30):
        core = RaftNode(
            Config(id=1, random=random.Random(seed), pre_vote=False), ConfState(voters=(1, 2, 3)), HardState(), []
        )
        ticks = 0
        while core.role is Role.FOLLOWER:
            core.tick()
            ticks += 1
        waits.add(ticks)
    assert min(waits) >= 10
    assert max(waits) < 20
    assert len(waits) > 5


# 3.5: replication


def test_an_append_that_does_not_follow_on_the_log_is_refused_with_a_hint() -> None:
    core = node([1, 1, 2, 2])
    core.step(AppendEntries(2, 1, 5, 4, 3, [entry(5, 5)], 0))
    (answer,) = answers(core)
    assert isinstance(answer, AppendEntriesResponse)
    assert (answer.rejected, answer.index, answer.hint_index, answer.hint_term) == (True, 4, 4, 2)


def test_a_conflict_drops_what_follows_it() -> None:
    core = node([1, 1, 1])
    core.step(AppendEntries(2, 1, 3, 1, 1, [entry(2, 2), entry(3, 3)], 0))
    assert [e.term for e in core.log.slice(1, core.last_index + 1)] == [1, 2, 3]


def test_an_overtaken_shorter_append_does_not_shorten_the_log() -> None:
    """3.5: entries are removed only where they conflict."""
    core = node([1, 1, 1])
    core.step(AppendEntries(2, 1, 1, 0, 0, [entry(1, 1)], 0))
    assert core.last_index == 3


def test_commit_follows_the_leader_only_as_far_as_the_append_proves() -> None:
    core = node([1, 1, 1])
    core.step(AppendEntries(2, 1, 2, 1, 1, [], 3))
    assert core.commit_index == 1
    core.step(AppendEntries(2, 1, 2, 1, 1, [entry(1, 2)], 9))
    assert core.commit_index == 2


def test_a_committed_entry_is_never_replaced() -> None:
    core = node([1, 1], commit=2)
    core.step(Heartbeat(2, 1, 2, 2, b""))
    core.step(AppendEntries(2, 1, 2, 0, 0, [entry(2, 1)], 2))
    assert [e.term for e in core.log.slice(1, 3)] == [1, 1]


def test_figure_3_6_logs_are_made_alike() -> None:
    """Every log of the figure ends as the leader's of term 8."""
    leader = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]
    followers = ([*leader[:-1]], leader[:4], [*leader, 6], [*leader, 7, 7], [1, 1, 1, 4, 4, 4, 4])
    for log in (*followers, [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]):
        group = Group(3)
        for number, terms in ((1, leader), (2, log), (3, leader)):
            group.disks[number].entries = [entry(term, index) for index, term in enumerate(terms, 1)]
            group.disks[number].hard_state = HardState(term=7)
            group.nodes[number] = RaftNode(
                Config(id=number, random=random.Random(number)),
                group.conf_state,
                HardState(term=7),
                group.disks[number].entries,
            )
        group.elect(1)
        terms = [e.term for e in group.nodes[2].log.slice(1, group.nodes[2].last_index + 1)]
        assert terms == [*leader, 8]


def test_hints_skip_whole_terms() -> None:
    """A follower that is a thousand entries of other terms apart costs a few round trips, not a thousand."""
    group = Group(3)
    for number, terms in ((1, [1] + [3] * 1000), (2, [1] + [2] * 1000), (3, [1] + [3] * 1000)):
        entries = [entry(term, index) for index, term in enumerate(terms, 1)]
        group.disks[number].entries = entries
        group.disks[number].hard_state = HardState(term=3)
        config = Config(id=number, random=random.Random(number))
        group.nodes[number] = RaftNode(config, group.conf_state, HardState(term=3), entries)
    sent = []
    group.on_send = lambda message: sent.append(message) if isinstance(message, AppendEntries) else None
    group.elect(1)
    assert group.nodes[2].last_index == 1002
    assert len([message for message in sent if message.to == 2]) < 10


# 3.6.2: figure 3.7


def test_an_entry_of_an_earlier_term_is_not_committed_by_counting() -> None:
    core = node([1, 2], term=3, pre_vote=False)
    core.campaign()
    core.advance(core.ready())
    core.step(RequestVoteResponse(2, 1, 4, True, False))
    assert core.role is Role.LEADER
    core.advance(core.ready())
    core.step(AppendEntriesResponse(2, 1, 4, False, 2, 0, 0))
    assert core.commit_index == 0, "two of three hold entry 2, but its term is over"
    core.step(AppendEntriesResponse(2, 1, 4, False, 3, 0, 0))
    assert core.commit_index == 3, "the leader's own first entry commits what is before it"


# 3.8, 10.2.1: what must be durable first


def test_a_candidates_own_vote_counts_when_it_is_durable() -> None:
    core = node([], size=1)
    core.campaign()
    assert core.role is Role.CANDIDATE
    core.advance(core.ready())
    assert core.role is Role.LEADER


def test_requests_and_grants_of_votes_wait_for_the_disk() -> None:
    core = node([], pre_vote=False)
    core.campaign()
    ready = core.ready()
    assert ready.must_sync
    assert not ready.messages
    assert len(ready.messages_after_persist) == 2
    voter = node([])
    voter.step(RequestVote(2, 1, 1, 0, 0, False, False))
    granted = voter.ready()
    assert granted.must_sync
    assert not granted.messages


def test_a_leader_sends_before_its_own_disk_is_done_and_counts_itself_after() -> None:
    group = Group(3)
    group.elect(1)
    leader = group.nodes[1]
    leader.propose([b"a"])
    ready = leader.ready()
    assert [message.entries[-1].data for message in ready.messages if isinstance(message, AppendEntries)] == [b"a"] * 2
    index = leader.last_index
    leader.step(AppendEntriesResponse(2, 1, leader.term, False, index, 0, 0))
    assert leader.commit_index == index - 1, "one follower is no majority without the leader's own disk"
    leader.advance(ready)
    assert leader.commit_index == index


def test_a_leader_counts_only_those_of_its_entries_that_are_durable() -> None:
    """Two writes are under way; the end of the first proves nothing of the second."""
    group = Group(3)
    group.elect(1)
    leader = group.nodes[1]
    leader.propose([b"a"])
    first = leader.ready()
    leader.propose([b"b"])
    leader.ready()
    index = leader.last_index
    leader.step(AppendEntriesResponse(2, 1, leader.term, False, index, 0, 0))
    leader.advance(first)
    assert leader.commit_index == index - 1


def test_an_acknowledgement_waits_for_the_disk() -> None:
    core = node([])
    core.step(AppendEntries(2, 1, 1, 0, 0, [entry(1, 1)], 1))
    ready = core.ready()
    assert not ready.messages
    assert isinstance(ready.messages_after_persist[0], AppendEntriesResponse)
    assert not ready.committed, "committed, but not durable here"
    core.advance(ready)
    assert [e.index for e in core.ready().committed] == [1]


def test_a_late_fsync_of_a_replaced_entry_proves_nothing() -> None:
    """The entry at index 1 is replaced while its write is under way; the end of that write counts for nothing."""
    core = node([])
    core.step(AppendEntries(2, 1, 1, 0, 0, [entry(1, 1)], 0))
    old = core.ready()
    core.step(AppendEntries(3, 1, 2, 0, 0, [entry(2, 1)], 1))
    core.ready()
    core.advance(old)
    assert core.log.durable == 0
    assert not core.ready().committed


def test_readys_are_advanced_in_order() -> None:
    core = node([])
    core.step(AppendEntries(2, 1, 1, 0, 0, [entry(1, 1)], 0))
    core.ready()
    core.step(AppendEntries(2, 1, 1, 1, 1, [entry(1, 2)], 0))
    with pytest.raises(InvariantViolation):
        core.advance(core.ready())


# 3.10: transfer


def test_transfer_moves_leadership_to_a_follower_that_is_complete() -> None:
    group = Group(3)
    group.elect(1)
    group.nodes[1].propose([b"a"])
    group.nodes[1].transfer_leader(3)
    with pytest.raises(ProposalDropped):
        group.nodes[1].propose([b"b"])
    group.take(1)
    group.settle()
    assert group.nodes[3].role is Role.LEADER
    assert [e.data for e in group.applied[2]] == [b"", b"a", b""]


def test_transfer_is_given_up_after_an_election_timeout() -> None:
    group = Group(3)
    group.elect(1)
    group.nodes[1].transfer_leader(3)
    group.take(1)
    for _ in range(10):
        group.tick(1)
        group.tick(2)
        group.settle(lambda message: isinstance(message, TimeoutNow))
    group.nodes[1].propose([b"again"])


# 4.2.3, 9.6: disruption


def test_a_node_that_hears_its_leader_ignores_candidates() -> None:
    core = node([1])
    core.step(Heartbeat(2, 1, 1, 0, b""))
    answers(core)
    core.step(RequestVote(3, 1, 9, 9, 9, False, False))
    assert core.term == 1
    assert not core.has_ready()
    core.step(RequestVote(3, 1, 9, 9, 9, False, True))
    assert core.term == 9, "unless the leader itself asked for the election"


def test_an_isolated_node_never_raises_its_term() -> None:
    group = Group(3)
    group.elect(1)
    for _ in range(200):
        group.tick(3)
        group.settle(lambda message: 3 in (message.sender, message.to))
    assert group.nodes[3].term == 1
    for _ in range(3):
        group.tick(1)
        group.settle()
    assert group.nodes[1].role is Role.LEADER
    assert group.nodes[3].leader == 1


def test_a_leader_without_a_quorum_steps_down() -> None:
    """6.2: CheckQuorum."""
    group = Group(3)
    group.elect(1)
    for _ in range(25):
        group.tick(1)
        group.network.clear()
    assert group.nodes[1].role is Role.FOLLOWER


def test_a_lagging_pre_candidate_learns_the_newer_term() -> None:
    core = node([1], term=5)
    core.step(RequestVote(2, 1, 3, 1, 1, True, False))
    (answer,) = answers(core)
    assert isinstance(answer, RequestVoteResponse)
    assert (answer.granted, answer.term, core.term) == (False, 5, 5)


# 6.4: reads


def announced_round(leader: RaftNode) -> bytes:
    """The name of the read round that the leader's heartbeats announce."""
    (name,) = {message.context for message in leader.ready().messages if isinstance(message, Heartbeat)}
    return name


def test_a_read_needs_a_quorum_that_answers_its_own_round() -> None:
    group = Group(3)
    group.elect(1)
    leader = group.nodes[1]
    leader.read_index(b"one")
    name = announced_round(leader)
    leader.step(HeartbeatResponse(2, 1, leader.term, b"another"))
    assert not leader.has_ready()
    leader.step(HeartbeatResponse(2, 1, leader.term, name))
    assert [state.context for state in leader.ready().read_states] == [b"one"]


def asked(leader: RaftNode) -> list[int]:
    """Whom the leader's heartbeats ask."""
    return sorted(message.to for message in leader.ready().messages if isinstance(message, Heartbeat))


def confirmed_by(follower: int, leader: RaftNode) -> None:
    """Let one follower confirm the reads that are under way."""
    leader.step(HeartbeatResponse(follower, leader.id, leader.term, announced_round(leader)))
    assert leader.ready().read_states


def test_a_read_asks_only_those_who_confirmed_the_one_before() -> None:
    group = Group(5)
    group.elect(1)
    leader = group.nodes[1]
    leader.read_index(b"one")
    name = announced_round(leader)
    for follower in (4, 2, 3):
        leader.step(HeartbeatResponse(follower, 1, leader.term, name))
    assert leader.ready().read_states
    leader.read_index(b"two")
    assert asked(leader) == [2, 4]


def test_a_heartbeat_asks_all_again_when_a_read_was_not_confirmed_before() -> None:
    group = Group(3)
    group.elect(1)
    leader = group.nodes[1]
    leader.read_index(b"one")
    confirmed_by(2, leader)
    leader.read_index(b"two")
    assert asked(leader) == [2]
    leader.tick()
    assert asked(leader) == [2, 3]
    leader.read_index(b"three")
    confirmed_by(3, leader)
    leader.read_index(b"four")
    assert asked(leader) == [3]


def test_a_read_asks_all_when_one_who_would_be_asked_cannot_be_reached() -> None:
    group = Group(3)
    group.elect(1)
    leader = group.nodes[1]
    leader.read_index(b"one")
    confirmed_by(2, leader)
    leader.report_unreachable(3)
    leader.read_index(b"two")
    confirmed_by(2, leader)
    leader.report_unreachable(2)
    leader.read_index(b"three")
    assert asked(leader) == [2, 3]


def test_a_new_leader_answers_reads_only_after_its_first_commit() -> None:
    core = node([1], commit=1, pre_vote=False)
    core.campaign()
    core.advance(core.ready())
    core.step(RequestVoteResponse(2, 1, 2, True, False))
    core.read_index(b"early")
    ready = core.ready()
    core.step(HeartbeatResponse(2, 1, 2, b"early"))
    assert not ready.read_states
    core.advance(ready)
    core.step(AppendEntriesResponse(2, 1, 2, False, 2, 0, 0))
    core.step(HeartbeatResponse(2, 1, 2, announced_round(core)))
    assert [state.index for state in core.ready().read_states] == [2]


def test_only_a_sole_voter_that_has_committed_in_its_term_reads_without_asking() -> None:
    group = Group(3)
    group.elect(1)
    assert [core.sole_read_index() for core in group.nodes.values()] == [None, None, None]
    alone = Group(1)
    core = alone.nodes[1]
    assert core.sole_read_index() is None
    core.campaign()
    alone.take(1)
    alone.sync(1, 1)
    assert core.role is Role.LEADER
    assert core.sole_read_index() is None, "its no-op is not committed yet"
    alone.settle()
    assert core.sole_read_index() == core.commit_index == 1


def test_a_followers_read_is_answered_by_the_leader() -> None:
    group = Group(3)
    group.elect(1)
    group.read(2, b"read")
    group.settle()
    assert [(at, state.context) for at, state in group.answers] == [(2, b"read")]


def test_a_stale_leader_answers_no_read() -> None:
    group = Group(3, check_quorum=False)
    group.elect(1)
    for _ in range(30):
        group.tick(2)
        group.tick(3)
        group.settle(lambda message: 1 in (message.sender, message.to))
    assert group.leader() is not group.nodes[1]
    group.read(1, b"stale")
    group.settle()
    assert not group.answers


# Proposals and flow


def test_a_follower_forwards_proposals_to_the_leader_of_its_term_only() -> None:
    group = Group(3)
    group.elect(1)
    group.nodes[2].propose([b"forwarded"])
    group.take(2)
    group.settle()
    assert group.applied[3][-1].data == b"forwarded"
    for old, new in ((1, 3), (3, 1)):
        group.nodes[old].transfer_leader(new)
        group.take(old)
        group.settle()
    assert (group.nodes[1].role, group.nodes[1].term) == (Role.LEADER, 3)
    group.deliver(Propose(2, 1, 1, (b"late",)))
    group.settle()
    assert b"late" not in [e.data for e in group.applied[1]]


def test_uncommitted_bytes_are_bounded_and_given_back() -> None:
    group = Group(3, max_uncommitted_bytes=100)
    group.elect(1)
    leader = group.nodes[1]
    leader.propose([b"x" * 90])
    with pytest.raises(ProposalDropped):
        leader.propose([b"x" * 20])
    group.take(1)
    group.settle()
    for _ in range(20):
        leader.propose([b"x" * 90])
        group.take(1)
        group.settle()


def test_the_window_to_a_follower_is_bounded_in_messages_and_bytes() -> None:
    progress = Progress(match=0, next_index=1, max_messages=2, max_bytes=1000)
    progress.accepted(0)
    progress.become_replicate()
    progress.sent(1, 10)
    assert not progress.paused()
    progress.sent(2, 10)
    assert progress.paused()
    progress.accepted(1)
    assert not progress.paused()
    progress.sent(3, 2000)
    assert progress.paused()
    progress.accepted(3)
    assert not progress.paused()


def test_a_rejection_halves_the_window_and_each_acceptance_widens_it_again() -> None:
    progress = Progress(match=0, next_index=1, max_messages=8, max_bytes=1000)
    progress.become_replicate()
    windows = []
    for rejected in (False, True, True, True, True, False):
        if rejected:
            assert progress.rejected(progress.match + 1, 0)
            progress.become_probe()
            progress.become_replicate()
        else:
            progress.accepted(progress.match + 1)
        first = progress.next
        while not progress.paused():
            progress.sent(progress.next, 1)
        windows.append(progress.next - first)
    assert windows == [8, 4, 2, 1, 1, 2]


def test_appends_that_overtake_each_other_are_not_multiplied() -> None:
    """Each rejection began a pipeline anew, whose answers held many rejections: a million messages in a second."""
    group = Group(3, max_message_bytes=1)
    group.elect(1)
    leader, follower = group.nodes[1], group.nodes[3]
    for number in range(200):
        leader.propose([b"%d" % number])
        group.take(1)
        group.settle(lambda message: message.to == 3)
    appends = 0
    while follower.last_index < leader.last_index:
        if not group.network:
            group.tick(1)
        message = group.network.pop(group.random.randrange(len(group.network)))
        appends += isinstance(message, AppendEntries)
        assert appends < 5_000
        group.deliver(message)
        for member in group.nodes:
            group.sync(member)


def test_a_follower_that_is_unreachable_is_probed() -> None:
    group = Group(3)
    group.elect(1)
    leader = group.nodes[1]
    leader.report_unreachable(2)
    for number in range(50):
        leader.propose([b"%d" % number])
    group.take(1)
    appends = [m for m in group.network if isinstance(m, AppendEntries) and m.to == 2]
    assert len(appends) == 1


def test_a_compacted_log_sends_a_snapshot() -> None:
    group = Group(3)
    group.elect(1)
    leader = group.nodes[1]
    for number in range(10):
        leader.propose([b"%d" % number])
        group.take(1)
        group.settle(lambda message: message.to == 3)
    leader.compact(8)
    assert leader.log.snapshot_index == 8
    leader.step(AppendEntriesResponse(3, 1, leader.term, True, leader.last_index, 0, 0))
    leader.step(HeartbeatResponse(3, 1, leader.term, b""))
    sent = [message for message in leader.ready().messages if message.to == 3]
    assert [type(message) for message in sent] == [InstallSnapshot]
    assert isinstance(sent[0], InstallSnapshot)
    assert (sent[0].metadata.index, sent[0].metadata.conf_state) == (8, group.conf_state)


def test_a_broken_invariant_poisons_the_node() -> None:
    group = Group(3)
    group.elect(1)
    with pytest.raises(InvariantViolation):
        group.nodes[1].step(AppendEntries(2, 1, 1, 0, 0, [], 0))
    with pytest.raises(InvariantViolation):
        group.nodes[1].tick()
