"""A process that has imported raftctl and forks for every command, so that commands start quickly.

Each runs in a process of its own all the same, with its own files, environment and end; what is not tested is that
Python finds and imports it. Run as a module it reads a command a line and answers a result a line, both JSON.
"""

import atexit
import base64
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from types import TracebackType
from typing import IO

from tests.cli.raftctl import BOUND_SECONDS, Result, environment
from tests.support import secrets


class Zygote:
    """The process, seen from the test."""

    def __enter__(self) -> "Zygote":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=BOUND_SECONDS)

    def raftctl(self, *arguments: str, stdin: bytes = b"", **variables: str) -> Result:
        """Run one command and wait for its end; a bound on its time is the process's own alarm."""
        secrets.check_marks(arguments)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = [arguments, base64.b64encode(stdin).decode(), environment(**variables)]
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        status, stdout, stderr = json.loads(self._process.stdout.readline())
        secrets.look("raftctl", stderr)
        return Result(status, base64.b64decode(stdout), stderr)


@functools.cache
def _shared() -> Zygote:
    zygote = Zygote()
    zygote.__enter__()
    atexit.register(zygote.__exit__, None, None, None)
    return zygote


def raftctl(*arguments: str, stdin: bytes = b"", **variables: str) -> Result:
    """Run a command with the zygote that all tests of this process share."""
    return _shared().raftctl(*arguments, stdin=stdin, **variables)


def _child(arguments: list[str], variables: dict[str, str], files: list[IO[bytes]]) -> None:
    signal.alarm(2 * BOUND_SECONDS)
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(variables)
    from cli.raftctl.main import main

    sys.argv = ["raftctl", *arguments]
    status: int | str | None = 1
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        # As Python would: what happens in `finally` leaves no time for that.
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status if isinstance(status, int) else 1)


def _run(arguments: list[str], stdin: bytes, variables: dict[str, str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(stdin)
        source.seek(0)
        child = os.fork()
        if child == 0:
            _child(arguments, variables, [source, out, err])
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        printed = base64.b64encode(out.read()).decode()
        return os.waitstatus_to_exitcode(status), printed, err.read().decode()


def _serve() -> None:
    import raftkv.client
    from cli.raftctl.main import PLACES

    assert raftkv.client
    for place in PLACES.values():
        importlib.import_module(f"cli.raftctl.{place.module}")
    # In a child the file is another, and must not be read ahead.
    requests = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w")
    for line in requests:
        arguments, stdin, variables = json.loads(line)
        print(json.dumps(_run(arguments, base64.b64decode(stdin), variables)), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
