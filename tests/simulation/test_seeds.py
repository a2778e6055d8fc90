"""Seeds of this commit: whole clusters with faults, all checks; and seeds that once found something."""

import json
import os
import re
import subprocess
import sys

import pytest

COMMIT_SEEDS = 20
"""New ones with every commit, so that the suite searches on."""


def sim(*arguments: str, hash_seed: str = "0") -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.getcwd()}
    return subprocess.run(
        [sys.executable, "-m", "raftkv", "sim", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def commit() -> str:
    """The commit under test; without git, always the same one."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "0" * 40


def test_every_check_holds_for_the_seeds_of_this_commit() -> None:
    first = int(commit()[:10], 16)
    done = sim("--seeds", str(COMMIT_SEEDS), "--first", str(first), "--jobs", "2")
    assert done.returncode == 0, f"{done.stderr}\nrun one with: raftkv sim --seed N --trace"
    summary = json.loads(done.stdout)
    assert summary["seeds"] == COMMIT_SEEDS
    assert summary["violations"] == []
    # A search that meets nothing would find nothing.
    assert summary["elections"] > COMMIT_SEEDS
    assert summary["faults"] > COMMIT_SEEDS
    assert summary["acknowledged"] > 50 * COMMIT_SEEDS


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
