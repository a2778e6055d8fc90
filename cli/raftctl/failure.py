"""How raftctl fails: one line, and etcdctl's exit statuses."""

ERROR = 1
BAD_CONNECTION = 2
INVALID_INPUT = 3
BAD_FEATURE = 4
INTERRUPTED = 5
BAD_ARGUMENTS = 128


class Failure(Exception):
    """Ends the command with `Error: message` and an exit status."""

    def __init__(self, message: str, status: int = ERROR) -> None:
        super().__init__(message)
        self.status = status
