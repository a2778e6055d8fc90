"""A process that has imported raftctl and forks for every command, so that a long table of commands runs quickly.

Run as a module it reads a command a line and answers a result a line, both JSON.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import IO

from tests.cli.raftctl import BOUND_SECONDS, Result, environment


class Zygote:
    """The process, seen from the test."""

    def __enter__(self) -> "Zygote":
        command = ["timeout", str(4 * BOUND_SECONDS), sys.executable, "-m", "tests.cli.zygote"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=BOUND_SECONDS)

    def raftctl(self, *arguments: str, stdin: bytes = b"") -> Result:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([arguments, base64.b64encode(stdin).decode()]), file=self._process.stdin, flush=True)
        status, stdout, stderr = json.loads(self._process.stdout.readline())
        return Result(status, base64.b64decode(stdout), stderr)


def _child(arguments: list[str], files: list[IO[bytes]]) -> None:
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
    from cli.raftctl.main import main

    sys.argv = ["raftctl", *arguments]
    status: int | str | None = 1
    try:
        main()
    except SystemExit as ended:
        status = ended.code
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status if isinstance(status, int) else 1)


def _run(arguments: list[str], stdin: bytes) -> tuple[int, str, str]:
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(stdin)
        source.seek(0)
        child = os.fork()
        if child == 0:
            _child(arguments, [source, out, err])
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        printed = base64.b64encode(out.read()).decode()
        return os.waitstatus_to_exitcode(status), printed, err.read().decode()


def _serve() -> None:
    import cli.raftctl.main
    import raftkv.client

    assert raftkv.client
    assert cli.raftctl.main
    # In a child the file is another, and must not be read ahead.
    requests = os.fdopen(os.dup(0), "r")
    answers = os.fdopen(os.dup(1), "w")
    for line in requests:
        arguments, stdin = json.loads(line)
        print(json.dumps(_run(arguments, base64.b64decode(stdin))), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
