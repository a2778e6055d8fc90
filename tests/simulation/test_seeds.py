"""One seed is one run, which can be read; seeds that once found something."""

import json
import re

import pytest

from tests.simulation.searching import sim


@pytest.mark.parametrize("seed", ["3", "5"])
def test_a_seed_is_one_stream_of_events_under_any_hash_seed(seed: str) -> None:
    runs = [json.loads(sim("--seed", seed, hash_seed=hash_seed).stdout) for hash_seed in ("1", "4711")]
    assert runs[0] == runs[1]
    assert runs[0]["events"] > 1000


def test_a_trace_is_a_conversation() -> None:
    done = sim("--seed", "5", "--seconds", "5", "--trace", "--faults", "isolate")
    assert done.returncode == 0
    for pattern in (
        r"m\d is leader in term 1",
        r"m\d → m\d  RequestVote term 1",
        r"m\d → m\d  AppendEntries term \d, entries",
        r"fault  isolate m\d",
        r"c\d+ → m\d  #1 ",
        r"c\d+ ← m\d  #1 ",
    ):
        assert re.search(pattern, done.stdout), pattern


def test_faults_and_size_can_be_chosen() -> None:
    done = sim("--seed", "1", "--nodes", "5", "--faults", "none", "--seconds", "3")
    result = json.loads(done.stdout)
    assert (result["faults"], result["lives"], result["violation"]) == (0, 5, "")


@pytest.mark.parametrize("arguments", [("--faults", "gremlins"), ("--trace",), ("--nodes", "4")])
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    done = sim(*arguments)
    assert done.returncode == 2
    assert "raftkv sim: error:" in done.stderr


def test_a_grant_that_a_slow_member_proposes_when_its_client_has_given_up_is_waited_for() -> None:
    done = sim("--seed", "7000570", "--seconds", "8")
    assert json.loads(done.stdout)["violation"] == ""


def test_a_slow_member_may_stop_of_its_disk_when_the_fault_is_over_already() -> None:
    done = sim("--seed", "500024", "--seconds", "10")
    assert json.loads(done.stdout)["violation"] == ""


def test_the_last_member_goes_on_after_a_crash_though_it_removed_the_other_one_a_moment_before() -> None:
    done = sim("--seed", "501725")
    assert json.loads(done.stdout)["violation"] == ""
