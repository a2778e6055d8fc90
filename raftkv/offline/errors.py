"""How work on files fails."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Hears how many bytes are done, and of how many."""


class OfflineError(Exception):
    """A file or directory cannot be used; the message is one line that says what is wrong, and what to do."""


def no_progress(done: int, whole: int) -> None:
    """Nobody wants to know."""


def unreadable(path: str, error: OSError) -> OfflineError:
    """What the system says of a file."""
    return OfflineError(f"cannot read {path}: {(error.strerror or str(error)).lower()}")
