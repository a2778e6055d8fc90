"""What the commands take: argparse says `invalid` and names the text when one of these raises ValueError."""

from collections.abc import Callable, Sequence

from benchmarks.load import Load


def count(text: str) -> int:
    """Read a number from 1 on."""
    return at_least(1)(text)


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a number from `least` on."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError
        return value

    return number


def counts(text: str) -> tuple[int, ...]:
    """Read `1,3`."""
    return tuple(count(part) for part in text.split(","))


def loads(text: str) -> tuple[Load, ...]:
    """Read `1x1,10x10`."""
    return tuple(Load.parse(part) for part in text.split(","))


def some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return what reads some of the known names, separated by commas."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if not set(found) <= set(known):
            raise ValueError
        return found

    return names
