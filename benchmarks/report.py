"""What was measured, as a table for people and as JSON for programs."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.measure import Cell

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def markdown(cells: list[Cell], machine: dict[str, str], command: str) -> str:
    """Return the figures with what they were measured on and how to measure them again."""
    properties = [f"- {name}: {value}" for name, value in machine.items()]
    return "\n".join(
        [f"`{command}`", "", *properties, f"- others on the machine: {_others(cells)}", "", *_table(cells)]
    )


def document(cells: list[Cell], machine: dict[str, str], command: str) -> dict[str, object]:
    """Return everything that was measured, for JSON."""
    return {
        "command": command,
        "machine": machine,
        "cells": [
            {
                "members": cell.members,
                "work": cell.work,
                "load": cell.load.replace("×", "x"),
                "unit": cell.unit,
                "figures": cell.figures,
                "cpu_us": cell.cpu,
                "latency_ms": cell.latency_ms,
                "saturated": cell.saturated,
                "requests": cell.requests,
                "ratio": cell.ratio,
                "others": cell.others,
                "repeated": cell.repeated,
                "elections": cell.elections,
                "failure": cell.failure,
            }
            for cell in cells
        ],
    }


def write_readme(text: str, readme: Path = README) -> None:
    """Put the figures between the markers of README.md.

    Raises:
        ValueError: the markers are not there.
    """
    head, begin, rest = readme.read_text().partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no {BEGIN} … {END}")
    readme.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def _others(cells: list[Cell]) -> str:
    shares = [share for cell in cells for share in cell.others]
    if not shares:
        return "not measured"
    repeated = sum(cell.repeated for cell in cells)
    again = f"; {repeated} runs disturbed and repeated" if repeated else ""
    return f"{statistics.median(shares):.0%} of its processors in the median run, {max(shares):.0%} in the worst{again}"


def _table(cells: Iterable[Cell]) -> Iterable[str]:
    yield "| members | work | connections × streams | etcd | raftkv | raftkv ÷ etcd | µs of processor, etcd | raftkv |"
    yield "|---|---|---|---|---|---|---|---|"
    for cell in cells:
        yield f"| {cell.members} | {cell.title} | {cell.load} | {' | '.join(_results(cell))} |"


def _results(cell: Cell) -> Iterable[str]:
    if cell.failure is not None:
        reason = " ".join(cell.failure.split())[:120].replace("|", "¦")
        return ("—", "—", f"FAILED: {reason}", "—", "—")
    notes = "".join(f" ({kind}: {count} elections)" for kind, count in cell.elections.items() if count)
    saturated = {kind: count for kind, count in cell.saturated.items() if count}
    notes += "".join(f" ({kind}: the generator was busy or late in {count})" for kind, count in saturated.items())
    processor = (_number(statistics.median(cell.cpu[kind])) if cell.cpu[kind] else "" for kind in cell.kinds)
    return (*(_figure(cell, kind) for kind in cell.kinds), f"**{cell.ratio:.2f}**{notes}", *processor)


def _figure(cell: Cell, kind: str) -> str:
    figures = cell.figures[kind]
    spread = f" ({_number(min(figures))}–{_number(max(figures))})" if len(figures) > 1 else ""
    unit = "/s" if cell.unit == "/s" else f" {cell.unit}"
    return f"{_number(cell.median(kind))}{unit}{spread}{_latency(cell.latency_ms[kind])}"


def _latency(runs: list[tuple[float, float]]) -> str:
    if not runs:
        return ""
    p50, p99 = (statistics.median(column) for column in zip(*runs, strict=True))
    return f", p50 {_number(p50)} ms, p99 {_number(p99)} ms"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
