"""The search finds bugs that are there, and makes what it finds small."""

import json

import pytest

from raftkv.simulation.faults import Fault
from raftkv.simulation.shrink import fewest
from tests.simulation.searching import sim

MUTANTS = ("forgets-its-vote", "proposes-twice", "leases-expire-too-soon", "renews-what-is-gone")
"""Of those in docs/guarantees.md, some that are found at once."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_bug_is_found(mutant: str) -> None:
    done = sim("--mutant", mutant, "--seeds", "40", "--jobs", "1")
    assert done.returncode == 1, done.stderr
    assert "look at one: raftkv sim --seed" in done.stderr


@pytest.mark.parametrize("mutant", ["leaks-uncommitted-bytes", "leaks-inflight-bytes"])
def test_a_counter_that_leaks_is_found_where_crowds_ask(mutant: str) -> None:
    done = sim("--mutant", mutant, "--seeds", "30", "--seconds", "10", "--faults", "overload,isolate,crash")
    assert done.returncode == 1, done.stderr
    assert "I23" in done.stderr


@pytest.mark.parametrize(
    ("mutant", "promises"),
    [
        ("defragments-without-the-applied-index", ("I5", "I24")),
        ("roles-do-not-move-the-applied-index", ("I5", "I24")),
        ("users-of-before-a-snapshot", ("I5",)),
    ],
)
def test_a_bug_of_stores_is_found_where_they_are_copied(mutant: str, promises: tuple[str, ...]) -> None:
    arguments = ("--seeds", "120", "--seconds", "10", "--faults", "flush,isolate,crash")
    done = sim("--mutant", mutant, *arguments)
    assert done.returncode == 1, done.stderr
    (found,) = json.loads(done.stdout)["violations"]
    assert found["violation"].startswith(promises), found


def test_a_crowd_is_refused_what_is_too_much() -> None:
    seed = "103"
    done = sim("--seed", seed, "--seconds", "8", "--faults", "overload,isolate,slow-disk", "--trace")
    assert done.returncode == 0, done.stderr
    assert "fault  overload" in done.stdout
    assert "too many requests" in done.stdout


def test_a_plan_shrinks_to_the_faults_that_matter() -> None:
    plan = [Fault(float(number), "crash", 1.0, number) for number in range(20)]
    needed = {plan[3], plan[17]}
    tried = []

    def fails(left: list[Fault]) -> bool:
        tried.append(len(left))
        return needed <= set(left)

    assert fewest(plan, fails) == [plan[3], plan[17]]
    assert len(tried) < 60


def test_a_plan_that_fails_without_faults_shrinks_to_nothing() -> None:
    assert fewest([Fault(1.0, "crash", 1.0, 0)], lambda left: True) == []
