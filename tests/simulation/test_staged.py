"""Faults in several acts happen as they are meant to, and every check holds; several processes find what one finds."""

import json
import multiprocessing
import signal
from collections.abc import Iterator

import pytest

from raftkv.simulation import command
from raftkv.simulation.faults import KINDS
from raftkv.simulation.invariants import Violation
from raftkv.simulation.mutants import MUTANTS
from raftkv.simulation.options import draw
from raftkv.simulation.run import Simulation, run
from raftkv.simulation.staged import KINDS as STAGED

MIXED_SEEDS = 8


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("kind", STAGED)
def test_every_check_holds_under_it(kind: str) -> None:
    for seed in (1, 2, 3):
        options = draw(seed, kinds=KINDS, faults=frozenset({kind}), seconds=10.0)
        options.renewers = 1
        result = run(options)
        assert result.violation == "", f"raftkv sim --seed {seed} --faults {kind}"
        assert result.faults
        assert result.elections > 1


def first_that_fails(mutant: str, kind: str, seeds: int) -> tuple[int, str]:
    MUTANTS[mutant]()
    for seed in range(1, seeds + 1):
        result = run(draw(seed, kinds=KINDS, faults=frozenset({kind}), seconds=10.0))
        if result.violation:
            return seed, result.violation
    return 0, ""


@pytest.mark.parametrize(
    ("mutant", "kind", "promises"),
    [
        ("commits-old-terms-by-counting", "short-reigns", ("I4", "I5")),
        ("never-answers-stale-messages", "lost-campaign", ("I17", "I23")),
        ("renews-without-asking-a-quorum", "sleeping-leader", ("I16",)),
        ("counts-what-was-replaced", "replaced-write", ("I9",)),
        ("changes-overtake-each-other", "torn-change", ("I1", "I4", "I5")),
        ("stands-before-it-has-applied-the-members", "torn-change", ("I4", "I5")),
    ],
)
def test_it_finds_the_bug_that_it_was_made_for(mutant: str, kind: str, promises: tuple[str, ...]) -> None:
    # In a process of its own: the bug stays in it.
    with multiprocessing.get_context("fork").Pool(1) as pool:
        seed, violation = pool.apply(first_that_fails, (mutant, kind, 100))
    assert violation.startswith(promises), (seed, violation)


def test_what_is_applied_before_it_is_durable_is_a_violation() -> None:
    simulation = Simulation(draw(1, nodes=3, seconds=3.0, faults=frozenset()))
    cluster = simulation.cluster
    cluster.start(0)
    cluster.start(1)
    try:
        assert cluster.run_until(lambda: len(cluster.invariants.committed) > 2, 20.0)
        process = cluster.processes()[0]
        process.durable = lambda index, term: False  # type: ignore[method-assign]
        process.reported = None
        with pytest.raises(Violation, match=r"I9: .* is not on its disk"):
            cluster.invariants.turned(process)
    finally:
        cluster.close()


def test_several_processes_find_what_one_finds(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for jobs in ("1", "2"):
        assert command.main(["--seeds", "10", "--first", "7000", "--seconds", "2", "--jobs", jobs]) == 0
        found.append(json.loads(capsys.readouterr().out))
        for name in ("elapsed_seconds", "cpu_seconds"):
            assert found[-1].pop(name) > 0
    assert found[0] == found[1]


def test_a_worker_can_be_ended_from_its_first_moment_on(capsys: pytest.CaptureFixture[str]) -> None:
    """With the handler of its parent it would not hear the signal while it begins, and be waited for for ever."""
    assert command.main(["--seeds", "2", "--seconds", "1", "--jobs", "2"]) == 0
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(signal.getsignal, (signal.SIGTERM,)) is signal.SIG_DFL
    assert json.loads(capsys.readouterr().out)["violations"] == []


def test_every_check_holds_under_everything_at_once() -> None:
    for seed in range(MIXED_SEEDS):
        result = run(draw(seed, kinds=KINDS, faults=frozenset(KINDS), seconds=6.0))
        assert result.violation == "", f"raftkv sim --seed {seed} --faults all --seconds 6"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0"], "argument --seeds: 0 is not at least 1"),
        (["--jobs", "-1"], "argument --jobs: -1 is not at least 1"),
        (["--seconds", "0"], "argument --seconds: 0 is not above 0"),
        (["--rate", "nan"], "argument --rate: nan is not above 0"),
        (["--seed", "1", "--html", "/dev/null/x"], "cannot write --html /dev/null/x: not a directory"),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
