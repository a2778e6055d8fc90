"""watch: print changes as they come, or run a command for each."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from cli.raftctl import flags, golang
from cli.raftctl.failure import BAD_ARGUMENTS, ERROR, INVALID_INPUT, WATCH_CANCELED, Failure, UsageFailure, text
from cli.raftctl.flags import Command
from cli.raftctl.printers import Printer, write_line
from cli.raftctl.session import global_options, session
from cli.raftctl.txn import split_words

if TYPE_CHECKING:
    from raftkv.client import Client, Watch
    from raftkv.pb import rpc_pb2

_BAD_COUNT = "bad number of arguments"
_KEY, _RANGE_END = "RAFTCTL_WATCH_KEY", "RAFTCTL_WATCH_RANGE_END"


class _WatchCommand(Command):
    """What stands behind -- is a command of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            ctx.meta["command"] = args[place + 1 :]
            args = args[:place]
        return super().parse_args(ctx, args)


def _options(function: Any) -> Any:
    for option in (
        click.option("--progress-notify", is_flag=True, help="Print now and then how far the server is."),
        click.option("--prev-kv", is_flag=True, help="Print what each change replaced, too."),
        click.option("--rev", type=flags.INT, default=0, help="Begin at this revision; 0: now."),
        click.option("--prefix", is_flag=True, help="All keys that begin with KEY."),
        click.argument("words", nargs=-1, metavar="[KEY] [RANGE_END] [-- COMMAND...]"),
    ):
        function = option(function)
    return function


@click.command("watch", cls=_WatchCommand)
@_options
@click.option("-i", "--interactive", is_flag=True, help="Read `watch ...` and `progress` lines from standard input.")
@global_options
def watch(interactive: bool, **arguments: Any) -> None:
    """Print the changes of KEY, of the keys from KEY up to RANGE_END, or of those that begin with a prefix.

    Goes on, after a disconnect, where it was. With -- COMMAND, that is run for each change, with ETCD_WATCH_REVISION,
    ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and ETCD_WATCH_VALUE in its environment. RAFTCTL_WATCH_KEY and
    RAFTCTL_WATCH_RANGE_END stand for the arguments.

    \b
    Examples:
      raftctl watch /registry --prefix
      raftctl watch /registry/hello --rev 1 --prev-kv -w json
      raftctl watch /registry/hello -- sh -c 'echo $ETCD_WATCH_KEY changed'
      raftctl watch -i
    """
    if not os.environ.get(_KEY) and os.environ.get(_RANGE_END):
        given = golang.quote(os.environ[_RANGE_END].encode())
        raise Failure(f"{_KEY} is empty but got {_RANGE_END}={given}", BAD_ARGUMENTS)
    printer = session().printer().able("watch")
    if interactive:
        _Interactive(printer).run()
        return
    wanted = _Wanted(arguments, click.get_current_context().meta.get("command"))
    with session().client() as client, wanted.begin(client) as watching:
        _show(watching, printer, wanted.command)
    raise Failure("watch is canceled by the server", WATCH_CANCELED)


class _Wanted:
    """What one `watch` asks for."""

    def __init__(self, arguments: dict[str, Any], command: Sequence[str] | None) -> None:
        """Take parsed flags, and what stood behind --, if it was there.

        Raises:
            Failure: no key, or two.
        """
        words = list(arguments["words"])
        environment = [os.environ[name] for name in (_KEY, _RANGE_END) if os.environ.get(name)]
        if command is not None and not command:
            raise Failure(f"{_BAD_COUNT} (found separator --, but no commands)", BAD_ARGUMENTS)
        if words and environment:
            raise Failure(f"{_BAD_COUNT} (found conflicting environment key)", BAD_ARGUMENTS)
        words = words or environment
        if not words:
            raise Failure(_BAD_COUNT, BAD_ARGUMENTS)
        if len(words) == 2 and arguments["prefix"]:
            raise Failure("`range_end` and `--prefix` are mutually exclusive", BAD_ARGUMENTS)
        self.command = command
        self._arguments = arguments
        self._words = [word.encode("utf-8", "surrogateescape") for word in words]

    def begin(self, client: "Client") -> "Watch":
        """Open the watch."""
        arguments = self._arguments
        return client.watch(
            self._words[0],
            # As etcdctl: of three words or more only the first counts.
            self._words[1] if len(self._words) == 2 else None,
            prefix=arguments["prefix"],
            start_revision=max(0, arguments["rev"]),
            prev_kv=arguments["prev_kv"],
            progress_notify=arguments["progress_notify"],
        )


def _show(watching: "Watch", printer: Printer, command: Sequence[str] | None, lock: Any = None) -> None:
    """Print what comes, and run the command, until the server ends the watch."""
    from raftkv.client import NotConnected, Refused, WatchCompacted

    lock = lock or threading.Lock()
    try:
        for response in watching:
            with lock:
                if not response.events:
                    write_line(f"progress notify: {response.header.revision}")
                printer.watch(response)
                sys.stdout.flush()
                for event in response.events if command else ():
                    _run(command or (), response, event)
    except NotConnected:
        raise
    except Refused as error:
        with lock:
            print(f"watch was canceled ({text(error)})", file=sys.stderr)
            if isinstance(error, WatchCompacted):
                printer.watch(error.response)


def _run(command: Sequence[str], response: "rpc_pb2.WatchResponse", event: Any) -> None:
    from raftkv.pb import kv_pb2

    variables = {
        "ETCD_WATCH_REVISION": str(response.header.revision),
        "ETCD_WATCH_EVENT_TYPE": golang.quote(kv_pb2.Event.EventType.Name(event.type).encode()),
        "ETCD_WATCH_KEY": golang.quote(event.kv.key),
        "ETCD_WATCH_VALUE": golang.quote(event.kv.value),
    }
    try:
        status = subprocess.run(command, env=os.environ | variables, check=False, stdin=subprocess.DEVNULL).returncode
    except OSError:
        problem = f"exec: {golang.quote(command[0].encode())}: executable file not found in $PATH"
    else:
        if not status:
            return
        problem = f"exit status {status}" if status > 0 else f"signal: {-status}"
    words = " ".join(golang.quote(word.encode("utf-8", "surrogateescape")) for word in command)
    print(f"command [{words}] error ({problem})", file=sys.stderr, flush=True)
    # Not an exception: it may be one of several watches, each in a thread.
    os._exit(ERROR)


class _Interactive:
    """Reads lines; each `watch` prints from a thread of its own."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._lock = threading.Lock()
        self._watches: list[Watch] = []
        self._parser = click.command("watch", cls=_WatchCommand, add_help_option=False)(_options(lambda: None))

    def run(self) -> None:
        """Obey until standard input ends."""
        with session().client() as client:
            for line in sys.stdin.buffer:
                self._obey(client, line.decode("utf-8", "surrogateescape").removesuffix("\n"))
            for watching in self._watches:
                watching.close()
        raise Failure("Error reading watch request line: EOF", INVALID_INPUT)

    def _obey(self, client: "Client", line: str) -> None:
        words = split_words(line)
        if not words:
            print(f"Invalid command: {line} (watch and progress supported)", file=sys.stderr)
        elif words[0] == "watch" and len(words) < 2 and not os.environ.get(_KEY):
            print(f"Invalid command {line} (command type or key is not provided)", file=sys.stderr)
        elif words[0] == "watch":
            self._begin(client, words[1:])
        elif words[0] == "progress":
            for watching in self._watches:
                watching.request_progress()
        else:
            print(f"Invalid command {line} (only support watch)", file=sys.stderr)

    def _begin(self, client: "Client", words: list[str]) -> None:
        from raftkv.client import Refused

        try:
            context = self._parser.make_context("watch", words)
        except UsageFailure as error:
            raise Failure(str(error), BAD_ARGUMENTS) from error
        wanted = _Wanted(context.params, context.meta.get("command"))
        watching = wanted.begin(client)
        try:
            # Only then may a line of progress follow.
            watching.ready()
        except Refused as error:
            print(f"watch was canceled ({text(error)})", file=sys.stderr)
            return
        self._watches.append(watching)
        threading.Thread(target=_show, args=(watching, self._printer, wanted.command, self._lock), daemon=True).start()
