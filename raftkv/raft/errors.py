"""What the core refuses, and what must never happen.

RaftError
├── ProposalDropped       no leader, transferring leadership, or too much uncommitted: nothing happened, try later
└── InvariantViolation    a bug or a damaged input; the node is poisoned and must be stopped
"""


class RaftError(Exception):
    """Base of the core's errors."""


class ProposalDropped(RaftError):
    """The request was refused before it had any effect."""


class InvariantViolation(RaftError):
    """A rule of Raft was about to be broken. Nothing may catch this but the process that stops."""
