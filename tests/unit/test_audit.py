"""What `make lint` makes of pip-audit's answers; nothing is asked here."""

import io
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import audit

SOUND = {"name": "h11", "version": "0.16.0", "vulns": []}
HOLE = {
    "name": "h2",
    "version": "4.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["4.1"], "description": "…"}],
}


def test_a_hole_is_told_with_what_mends_it() -> None:
    holes, unknown = audit.judge({"dependencies": [SOUND, HOLE, {"name": "raftkv", "skip_reason": "not on PyPI"}]})
    assert holes == ["h2 4.0 has PYSEC-1 CVE-1; fixed in 4.1: `make lock`"]
    assert unknown == ["raftkv"]
    assert audit.judge({"dependencies": [SOUND]}) == ([], [])


@pytest.mark.parametrize(
    ("found", "status", "told"),
    [
        ([SOUND, HOLE], 1, "h2 4.0 has PYSEC-1 CVE-1; fixed in 4.1: `make lock`\n"),
        ([SOUND], 0, ""),
        ([SOUND, {"name": "raftkv", "skip_reason": "not on PyPI"}], 0, ""),
    ],
)
def test_lint_fails_on_a_known_hole_and_on_nothing_else(
    found: list[dict[str, Any]],
    status: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """pip-audit itself is played by a program that answers as it does, and tells what it was asked."""
    answer, asked = tmp_path / "answer", tmp_path / "asked"
    answer.write_text(json.dumps({"dependencies": found}))
    program = tmp_path / "bin" / "pip-audit"
    program.parent.mkdir()
    script = f"import sys; open({str(asked)!r}, 'w').write(' '.join(sys.argv)); print(open({str(answer)!r}).read())"
    program.write_text(f"#!{sys.executable}\n{script}\nsys.exit({status})\n")
    program.chmod(0o755)
    monkeypatch.setattr(audit, "HOME", tmp_path)
    monkeypatch.setattr(audit, "unanswered", lambda: "")
    monkeypatch.setattr(audit, "install", lambda: "")
    assert audit.main() == status
    assert capsys.readouterr().err == told
    assert f" --require-hashes -r {audit.LOCK} " in asked.read_text()


def offline(*arguments: Any, **more: Any) -> io.BytesIO:
    raise urllib.error.URLError("no route")


@pytest.mark.parametrize(
    "answer", [offline, lambda *_, **__: io.BytesIO(b"{}"), lambda *_, **__: io.BytesIO(b"<html>")]
)
def test_where_nobody_answers_there_is_a_line_and_no_error(
    answer: Callable[..., io.BytesIO], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    assert audit.main() == 0
    assert capsys.readouterr().out.startswith("audit skipped: ")


def test_what_pypi_says_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(b'{"vulnerabilities": []}')

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    assert audit.unanswered() == ""
    assert asked[0].startswith("https://pypi.org/pypi/")
    assert "==" not in asked[0]
