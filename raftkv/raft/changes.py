"""From one configuration to the next (thesis chapter 4): pure functions of configurations.

A change of one voter needs no joint configuration: any two majorities, of before and after, have a member in common
(4.1). Any other change goes through one, in which both majorities must agree (4.3). While it is in force nothing but
leaving it is possible.
"""

from collections.abc import Collection

from .messages import ConfState, NodeId


class ChangeRefused(ValueError):
    """The change cannot follow on this configuration."""


def add_voter(conf: ConfState, member: NodeId) -> ConfState:
    """Let a newcomer or a learner vote.

    Raises:
        ChangeRefused: it votes already, or a joint configuration is in force.
    """
    _check_simple(conf)
    if member in conf.voters:
        raise ChangeRefused(f"{member:x} is a voter")
    return _simple({*conf.voters, member}, {*conf.learners} - {member})


def add_learner(conf: ConfState, member: NodeId) -> ConfState:
    """Send a newcomer the log without counting it.

    Raises:
        ChangeRefused: it is a member already, or a joint configuration is in force.
    """
    _check_simple(conf)
    if member in conf.members():
        raise ChangeRefused(f"{member:x} is a member")
    return _simple(conf.voters, {*conf.learners, member})


def remove(conf: ConfState, member: NodeId) -> ConfState:
    """Leave a member out.

    Raises:
        ChangeRefused: it is none, it is the last voter, or a joint configuration is in force.
    """
    _check_simple(conf)
    if member not in conf.members():
        raise ChangeRefused(f"{member:x} is no member")
    if conf.voters == (member,):
        raise ChangeRefused(f"{member:x} is the last voter")
    return _simple({*conf.voters} - {member}, {*conf.learners} - {member})


def enter_joint(
    conf: ConfState, voters: Collection[NodeId], learners: Collection[NodeId] = (), *, auto_leave: bool = True
) -> ConfState:
    """Change any number of members at once: until the joint configuration is left, majorities of both halves count.

    A voter that is to become a learner stays a voter of the outgoing half until then.

    Raises:
        ChangeRefused: there would be no voters, one would be a learner as well, or one is in force already.
    """
    _check_simple(conf)
    if not voters or {*voters} & {*learners}:
        raise ChangeRefused(f"voters {voters}, learners {learners}")
    later = {*learners} & {*conf.voters}
    return ConfState(
        voters=tuple(sorted({*voters})),
        learners=tuple(sorted({*learners} - later)),
        voters_outgoing=conf.voters,
        learners_next=tuple(sorted(later)),
        auto_leave=auto_leave,
    )


def leave_joint(conf: ConfState) -> ConfState:
    """The configuration that a joint one leads to.

    Raises:
        ChangeRefused: none is in force.
    """
    if not conf.voters_outgoing:
        raise ChangeRefused("no joint configuration is in force")
    return _simple(conf.voters, {*conf.learners, *conf.learners_next})


def _check_simple(conf: ConfState) -> None:
    if conf.voters_outgoing:
        raise ChangeRefused("a joint configuration is in force")


def _simple(voters: Collection[NodeId], learners: Collection[NodeId]) -> ConfState:
    return ConfState(voters=tuple(sorted(voters)), learners=tuple(sorted(learners)))
