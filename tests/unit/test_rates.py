"""Token buckets under a clock of the test's own."""

import pytest

from raftkv.rates import MAX_BUCKETS, Exceeded, Rate, Rates, parse_rate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rates(*texts: str, apart: tuple[str, ...] = ()) -> tuple[Rates, Clock]:
    clock = Clock()
    return Rates(map(parse_rate, texts), clock, apart), clock


def passed(limits: Rates, user: str, method: str, calls: int = 1000, who: str = "") -> int:
    """How many of some calls at one moment pass."""
    for number in range(calls):
        try:
            limits.take(user, who or user, method)
        except Exceeded:
            return number
    return calls


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("*=500", Rate("*", "*", 500, 500)),
        ("ann/Put=10:30", Rate("ann", "Put", 10, 30)),
        ("*/Range=0.5", Rate("*", "Range", 0.5, 1)),
        ("a/b/*=1", Rate("a/b", "*", 1, 1)),
        ("a=b/Put=2", Rate("a=b", "Put", 2, 2)),
    ],
)
def test_rules_are_read(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text",
    ["", "500", "=5", "ann", "ann=", "ann=x", "ann=0", "ann=-1", "ann=nan", "ann=inf", "ann=5:0", "/Put=1", "a/=1"],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form"):
        parse_rate(text)


def test_a_burst_then_the_rate() -> None:
    limits, clock = rates("*/Put=10:25")
    assert passed(limits, "ann", "Put") == 25
    for _ in range(20):
        clock.now += 0.5
        assert passed(limits, "ann", "Put") == 5
    clock.now += 1000
    assert passed(limits, "ann", "Put") == 25, "no more than the burst gathers"


def test_it_says_when_to_try_again() -> None:
    limits, clock = rates("ann=4:1")
    limits.take("ann", "ann", "Put")
    clock.now += 0.125
    with pytest.raises(Exceeded) as refused:
        limits.take("ann", "ann", "Put")
    assert refused.value.seconds == pytest.approx(0.125)
    clock.now += refused.value.seconds
    limits.take("ann", "ann", "Put")


def test_users_and_addresses_are_counted_apart_and_methods_together() -> None:
    limits, _ = rates("*=3")
    assert passed(limits, "ann", "Put") == 3
    assert passed(limits, "ann", "Range") == 0
    assert passed(limits, "bob", "Range") == 3
    assert passed(limits, "", "Range", who="10.0.0.1") == 3
    assert passed(limits, "", "Range", who="10.0.0.2") == 3


def test_a_users_own_rule_counts_instead_of_everyones() -> None:
    limits, _ = rates("*=3", "ann=10", "*/Put=2", "root/Put=5")
    assert passed(limits, "ann", "Range") == 10
    assert passed(limits, "bob", "Put") == 2
    assert passed(limits, "root", "Put") == 3, "all methods together are limited, too"


def test_a_call_that_is_refused_counts_against_nothing() -> None:
    limits, _ = rates("*=5", "*/Put=1")
    assert passed(limits, "ann", "Put") == 1
    assert passed(limits, "ann", "Range") == 4


def test_what_leases_need_counts_only_where_it_is_named() -> None:
    limits, _ = rates("*=1", apart=("LeaseRevoke", "LeaseKeepAlive"))
    assert not limits.matter("LeaseRevoke")
    assert passed(limits, "ann", "LeaseRevoke") == 1000
    limits, _ = rates("*=1", "*/LeaseRevoke=7", apart=("LeaseRevoke",))
    assert passed(limits, "ann", "Put") == 1
    assert passed(limits, "ann", "LeaseRevoke") == 7


def test_callers_without_end_are_forgotten_and_those_who_exceed_are_not() -> None:
    limits, clock = rates("*=1:2")
    for number in range(3 * MAX_BUCKETS):
        limits.take("", f"10.{number}", "Put")
        clock.now += 0.001
        if number % 400 == 0:
            passed(limits, "", "Put", who="wild")
            assert passed(limits, "", "Put", who="wild") == 0
    assert len(limits._buckets) <= MAX_BUCKETS


def test_callers_without_end_at_one_moment_are_forgotten_the_oldest_first() -> None:
    limits, _ = rates("*=1:2")
    for number in range(3 * MAX_BUCKETS):
        limits.take("", f"10.{number}", "Put")
        assert len(limits._buckets) <= MAX_BUCKETS
    assert passed(limits, "", "Put", who=f"10.{3 * MAX_BUCKETS - 1}") == 1


def test_who_exceeds_is_not_forgotten_for_those_who_do_not() -> None:
    limits, clock = rates("*=1:2")
    for number in range(MAX_BUCKETS - 1):
        limits.take("", f"10.{number}", "Put")
    clock.now += 1000
    assert passed(limits, "", "Put", who="wild") == 2
    limits.take("", "one more", "Put")
    assert len(limits._buckets) == 2
    assert passed(limits, "", "Put", who="wild") == 0
