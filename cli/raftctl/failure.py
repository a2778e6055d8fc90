"""How raftctl fails: one line, and etcdctl's exit statuses."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftkv.client import ClientError

ERROR = 1
BAD_CONNECTION = 2
INVALID_INPUT = 3
BAD_FEATURE = 4
WATCH_CANCELED = 5
NOT_SAVED = 5
BAD_ARGUMENTS = 128
INTERRUPTED = 130
BROKEN_PIPE = 141

TIMED_OUT = "context deadline exceeded"


class Failure(Exception):
    """Ends the command with `Error: message` and an exit status; `notes` are lines before it."""

    def __init__(self, message: str, status: int = ERROR, *, notes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.notes = notes


class UsageFailure(Failure):
    """A flag or command that does not exist or makes no sense; points at the help of `command`, if it names one."""

    def __init__(self, message: str, *, notes: tuple[str, ...] = (), command: str = "") -> None:
        super().__init__(message, notes=notes)
        self.command = command


def text(error: "ClientError") -> str:
    """What etcdctl would say: it reports every end of its patience, also with connections, in the same words."""
    from raftkv.client import NotConnected
    from raftkv.status import Code

    late = error.code is Code.DEADLINE_EXCEEDED or isinstance(error, NotConnected)
    return TIMED_OUT if late else error.message


def failure(error: "ClientError") -> Failure:
    """A client's error as the end of the command."""
    from raftkv import errors
    from raftkv.client import NotConnected, OutcomeUnknown

    notes: tuple[str, ...] = ()
    # etcdctl logs in while it connects.
    status = BAD_CONNECTION if isinstance(error, (errors.AuthFailed, errors.NoPasswordUser)) else ERROR
    if isinstance(error, NotConnected):
        notes = (error.message,)
    elif isinstance(error, OutcomeUnknown):
        notes = ("the request was sent and not answered: it may have taken effect; it was not repeated",)
    return Failure(text(error), status, notes=notes)
