"""Bugs that members coming and going had elsewhere, each named after what broke; and what joint consensus promises."""

import pytest

from raftkv.raft import (
    ChangeRefused,
    ConfState,
    EntryKind,
    Message,
    Role,
    TimeoutNow,
    add_learner,
    add_voter,
    enter_joint,
    leave_joint,
    remove,
)
from raftkv.raft.quorum import cannot_win, has_quorum
from tests.unit.raft.group import Group


def change(group: Group, leader: int, data: bytes) -> None:
    """Propose a change and let it be applied everywhere."""
    group.nodes[leader].propose_conf_change(data)
    group.take(leader)
    group.settle()
    group.nodes[leader].tick()
    group.take(leader)
    group.settle()


def led(size: int, spare: int = 0, **settings: int | bool) -> Group:
    group = Group(size, spare=spare, **settings)
    group.elect(1)
    return group


def test_a_commit_index_known_before_an_entry_is_forgotten_after_it() -> None:
    """Whoever holds an entry proposed under a new configuration must know, after a restart, that this is in force."""
    group = led(3, spare=2)
    group.nodes[1].propose_conf_change(b"+4")
    group.take(1)
    group.settle()
    group.tick(1)
    group.settle()
    assert group.nodes[2].conf_state.voters == (1, 2, 3, 4)
    group.nodes[1].propose([b"under the new one"])
    group.take(1)
    group.settle()
    group.crash(2)
    assert group.nodes[2].conf_state.voters == (1, 2, 3, 4)


def test_who_is_left_of_two_leads_alone_after_a_restart() -> None:
    """It was told that the other one is gone; who is gone answers nobody."""
    group = led(2)
    change(group, 1, b"-2")
    group.crash(1)
    assert group.nodes[1].conf_state.voters == (1,)
    group.elect(1)


def test_nobody_hears_of_a_removal_before_the_leader_has_noted_it() -> None:
    """Whatever the leader says meanwhile, whoever is removed goes on until the leader can do without it for good."""
    group = led(2)
    group.nodes[1].propose_conf_change(b"-2")
    group.take(1)
    index = group.nodes[1].last_index
    group.sync(1)
    group.deliver(group.network.pop())
    group.sync(2)
    group.deliver(group.network.pop())
    assert group.nodes[1].commit_index == index
    for _ in range(5):
        group.tick(1)
    assert not group.network
    assert group.nodes[1].applied < index
    group.sync(1)
    assert group.network
    assert group.nodes[1].applied == index
    group.settle()
    assert group.nodes[2].conf_state.voters == (1,)


def test_a_removal_that_the_leader_forgot_before_anybody_heard_of_it_is_found_again() -> None:
    group = led(2)
    group.nodes[1].propose_conf_change(b"-2")
    group.take(1)
    for node in (1, 2):
        group.sync(node)
        group.deliver(group.network.pop())
    group.crash(1)
    assert group.nodes[1].conf_state.voters == (1, 2)
    group.recover()
    assert group.nodes[1].conf_state.voters == (1,) or group.nodes[2].conf_state.voters == (1,)


def test_a_restart_in_a_joint_configuration_forgets_the_outgoing_voters() -> None:
    group = led(3, spare=2)
    group.nodes[1].propose_conf_change(b"=1,4,5")
    group.take(1)
    # Entered; leaving it needs a majority of the new voters, which is cut off.
    group.settle(lambda message: {message.sender, message.to} & {4, 5} != set())
    group.tick(1)
    group.settle(lambda message: {message.sender, message.to} & {4, 5} != set())
    assert group.nodes[2].conf_state.voters_outgoing == (1, 2, 3)
    group.compact(2, group.nodes[2].applied)
    group.crash(2)
    assert group.nodes[2].conf_state == ConfState(voters=(1, 4, 5), voters_outgoing=(1, 2, 3), auto_leave=True)


def test_both_majorities_are_needed_while_a_joint_configuration_is_in_force() -> None:
    group = led(3, spare=2)
    cut = {4, 5}
    group.nodes[1].propose_conf_change(b"=1,4,5")
    group.take(1)
    group.settle(lambda message: bool({message.sender, message.to} & cut))
    before = group.nodes[1].commit_index
    group.nodes[1].propose([b"both"])
    group.take(1)
    group.settle(lambda message: bool({message.sender, message.to} & cut))
    assert group.nodes[1].commit_index == before
    group.recover()
    assert group.conf_at(len(group.committed)) == ConfState(voters=(1, 4, 5))


def test_a_joint_configuration_is_left_once_and_by_whoever_leads() -> None:
    group = led(3, spare=1)
    change(group, 1, b"=1,2,4")
    left = [entry for entry in group.committed if entry.kind is EntryKind.CONF_CHANGE and not entry.data]
    assert len(left) == 1
    assert group.nodes[1].conf_state == ConfState(voters=(1, 2, 4))
    # The leader is lost between entering and leaving: its successor proposes it.
    group.nodes[1].propose_conf_change(b"=1,2,3")
    group.take(1)
    group.settle(lambda message: False)
    group.recover()
    left = [entry for entry in group.committed if entry.kind is EntryKind.CONF_CHANGE and not entry.data]
    assert len(left) == 2


def test_a_member_campaigns_with_a_configuration_it_has_not_applied() -> None:
    group = led(3)
    follower = group.nodes[2]
    group.nodes[1].propose_conf_change(b"-3")
    group.take(1)
    group.settle()
    group.nodes[1].tick()
    group.take(1)
    # The commit index arrives, and nothing is applied yet.
    for message in [message for message in group.network if message.to == 2]:
        group.network.remove(message)
        follower.step(message)
    assert follower.applied < follower.commit_index or follower.conf_state.voters == (1, 2)
    if follower.applied < follower.commit_index:
        follower.campaign()
        follower.step(TimeoutNow(1, 2, follower.term))
        assert follower.role is Role.FOLLOWER


def test_a_removed_member_is_asked_to_lead_and_does() -> None:
    group = led(3)
    change(group, 1, b"-3")
    removed = group.nodes[3]
    removed.apply_conf_state(ConfState(voters=(1, 2)), removed.last_index + 1)
    removed.campaign()
    removed.step(TimeoutNow(1, 3, removed.term))
    assert removed.role is Role.FOLLOWER


def test_a_candidate_that_learns_of_its_removal_wins_all_the_same() -> None:
    group = led(3)
    candidate = group.nodes[3]
    candidate.campaign()
    assert candidate.role is Role.PRE_CANDIDATE
    candidate.apply_conf_state(ConfState(voters=(1, 2)), 9)
    assert candidate.role is Role.FOLLOWER


def test_a_promoted_learner_that_does_not_know_it_refuses_its_vote_and_nobody_leads() -> None:
    group = led(2, spare=1)
    change(group, 1, b"~3")
    group.nodes[1].propose_conf_change(b"+3")
    group.take(1)

    def keep_from_learner(message: Message) -> bool:
        return message.to == 3

    group.settle(keep_from_learner)
    group.tick(1)
    group.settle(keep_from_learner)
    assert group.nodes[2].conf_state.voters == (1, 2, 3)
    assert group.nodes[3].conf_state.learners == (3,)
    # The leader dies: two of three voters are left, one of which does not know that it is one.
    for _ in range(60):
        group.tick(2)
        group.tick(3)
        group.settle(lambda message: 1 in (message.sender, message.to))
    assert group.nodes[2].role is Role.LEADER


def test_leadership_transfers_again_and_again_hide_a_lost_majority() -> None:
    leader = led(3, election_ticks=4).nodes[1]
    for _ in range(12):
        leader.transfer_leader(2)
        leader.tick()
    assert leader.role is not Role.LEADER


def test_a_transfer_is_still_given_up_after_an_election_timeout() -> None:
    group = led(3, election_ticks=4, check_quorum=False)
    leader = group.nodes[1]
    leader.transfer_leader(2)
    for _ in range(4):
        leader.tick()
    leader.propose([b"taken again"])


def test_changes_that_do_not_follow_on_a_configuration_are_refused() -> None:
    conf = ConfState(voters=(1, 2), learners=(3,))
    joint = enter_joint(conf, (1, 4), (2, 3))
    assert joint == ConfState(voters=(1, 4), learners=(3,), voters_outgoing=(1, 2), learners_next=(2,), auto_leave=True)
    assert leave_joint(joint) == ConfState(voters=(1, 4), learners=(2, 3))
    assert add_voter(conf, 3) == ConfState(voters=(1, 2, 3))
    for refused in (
        lambda: add_voter(conf, 2),
        lambda: add_learner(conf, 2),
        lambda: remove(conf, 9),
        lambda: remove(ConfState(voters=(1,), learners=(3,)), 1),
        lambda: enter_joint(conf, ()),
        lambda: enter_joint(conf, (1,), (1,)),
        lambda: enter_joint(joint, (1,)),
        lambda: leave_joint(conf),
        lambda: add_voter(joint, 9),
        lambda: add_learner(joint, 9),
        lambda: remove(joint, 1),
    ):
        with pytest.raises(ChangeRefused):
            refused()


def test_an_election_is_won_by_one_half_of_a_joint_configuration() -> None:
    joint = ConfState(voters=(1, 4, 5), voters_outgoing=(1, 2, 3))
    assert not has_quorum(joint, {1, 4, 5})
    assert not has_quorum(joint, {1, 2, 3})
    assert has_quorum(joint, {1, 2, 4})
    assert cannot_win(joint, {2, 3})
    assert cannot_win(joint, {4, 5})
    assert not cannot_win(joint, {2, 4})
