"""How many calls a second who may make: rules, and the token buckets that keep them. Knows no clock of its own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

EVERY = "*"
MAX_BUCKETS = 10_000
"""Beyond it those that are full are forgotten, which changes nothing, and then the oldest."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many calls a second, and `burst` of them at once; of a user, or of each; of a method, or of all together."""

    user: str
    method: str
    per_second: float
    burst: float


def parse_rate(text: str) -> Rate:
    """Read `USER[/METHOD]=RATE[:BURST]`; `*` stands for each user by itself, and for all methods together.

    Raises:
        ValueError: it is not of that form.
    """
    subject, equals, numbers = text.rpartition("=")
    user, slash, method = subject.rpartition("/")
    if not slash:
        user, method = subject, EVERY
    rate, colon, burst = numbers.partition(":")
    try:
        per_second = float(rate)
        most = float(burst) if colon else max(per_second, 1.0)
    except ValueError:
        per_second = most = 0.0
    if not (equals and user and method and 0 < per_second < float("inf") and 1 <= most < float("inf")):
        raise ValueError(
            f"{text!r} is not of the form USER[/METHOD]=RATE[:BURST], such as *=500, ann/Put=10 or ann/*=50:200 "
            "(calls a second, and at once at least 1)"
        )
    return Rate(user, method, per_second, most)


class _Bucket:
    """Tokens, up to `rate.burst`; they come back with time."""

    __slots__ = ("rate", "tokens", "when")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self.tokens = rate.burst
        self.when = now

    def fill(self, now: float) -> None:
        """Have what has come back since."""
        self.tokens = min(self.rate.burst, self.tokens + (now - self.when) * self.rate.per_second)
        self.when = now


class Exceeded(Exception):
    """A call is one too many."""

    def __init__(self, rate: Rate, seconds: float) -> None:
        """`seconds` is after how long the next one may come."""
        super().__init__(rate, seconds)
        self.rate = rate
        self.seconds = seconds


class Rates:
    """Whether one more call may be made.

    A call counts against one rule that names its method, and one for all methods; each the user's own, or else that
    for every user. Methods in `apart` count only where they are named.
    """

    def __init__(self, rates: Iterable[Rate], clock: Callable[[], float], apart: Iterable[str] = ()) -> None:
        """`clock` gives seconds; where two rules say the same, the last counts."""
        self._rates = {(rate.user, rate.method): rate for rate in rates}
        self._clock = clock
        self._apart = frozenset(apart)
        self._buckets: dict[tuple[Rate, str], _Bucket] = {}

    def matter(self, method: str) -> bool:
        """Whether any rule is about a method."""
        return any(named == method or (named == EVERY and method not in self._apart) for _, named in self._rates)

    def take(self, user: str, who: str, method: str) -> None:
        """Count a call of a user, or of nobody (""); `who` tells callers apart that fall under one rule.

        Raises:
            Exceeded: it is one too many, and counts against nothing.
        """
        now = self._clock()
        found = [self._bucket(user, who, method, now)]
        if method not in self._apart:
            found.append(self._bucket(user, who, EVERY, now))
        buckets = [bucket for bucket in found if bucket is not None]
        for bucket in buckets:
            bucket.fill(now)
            if bucket.tokens < 1:
                raise Exceeded(bucket.rate, (1 - bucket.tokens) / bucket.rate.per_second)
        for bucket in buckets:
            bucket.tokens -= 1

    def _bucket(self, user: str, who: str, method: str, now: float) -> _Bucket | None:
        rate = self._rates.get((user, method)) or self._rates.get((EVERY, method))
        if rate is None:
            return None
        found = self._buckets.get((rate, who))
        if found is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self._forget(now)
            found = self._buckets[rate, who] = _Bucket(rate, now)
        return found

    def _forget(self, now: float) -> None:
        for key, bucket in list(self._buckets.items()):
            bucket.fill(now)
            if bucket.tokens >= bucket.rate.burst:
                del self._buckets[key]
        for key in list(self._buckets)[: len(self._buckets) - MAX_BUCKETS // 2]:
            del self._buckets[key]
