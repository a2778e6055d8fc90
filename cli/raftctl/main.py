"""The `raftctl` command."""

import importlib
import os
import sys
from typing import NamedTuple

import click

from cli.raftctl.failure import BROKEN_PIPE, INTERRUPTED, Failure, UsageFailure
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.session import Session, global_options
from raftkv import ETCD_API_VERSION, __version__

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Place(NamedTuple):
    """Where a command is, module of `cli.raftctl` and name in it, and the first sentence of its help, for the list."""

    module: str
    name: str
    summary: str


PLACES = {
    "alarm": Place("maintenance", "alarm", "Tell and disarm alarms."),
    "auth": Place("auth", "auth", "Have callers say who they are, or not."),
    "check": Place("check", "check", "Try what a cluster bears."),
    "compaction": Place("kv", "compaction", "Forget what keys were before REVISION."),
    "defrag": Place(
        "maintenance",
        "defrag",
        "Give the space of what was deleted and compacted back to the file system, member by member; "
        "they go on meanwhile.",
    ),
    "del": Place("kv", "delete", "Delete KEY, the keys from KEY up to RANGE_END, or those that begin with a prefix."),
    "elect": Place(
        "elect", "elect", "Stand in an election with VALUE, print the key when elected, and lead until told to stop."
    ),
    "endpoint": Place("endpoint", "endpoint", "Ask each endpoint about itself."),
    "get": Place("kv", "get", "Print KEY, the keys from KEY up to RANGE_END, or those that begin with a prefix."),
    "lease": Place("lease", "lease", "Make leases, keep them alive, look at them, end them."),
    "lock": Place(
        "lock", "lock", "Wait for a lock and hold it until told to stop, or while COMMAND runs, and exit as that did."
    ),
    "make-mirror": Place(
        "make_mirror",
        "make_mirror",
        "Copy the keys of a cluster to DESTINATION (host:port, several with commas), and then every change, "
        "until stopped.",
    ),
    "member": Place("member", "member", "Look at the cluster's members, and change who they are."),
    "move-leader": Place("maintenance", "move_leader", "Hand leadership to a member, named by its id in hexadecimal."),
    "put": Place("kv", "put", "Write KEY."),
    "role": Place("role", "role", "Make roles: rights to read or write keys, for users to have."),
    "snapshot": Place("snapshot", "snapshot", "Back up a member's store, and look into a backup."),
    "txn": Place("txn", "txn", "Run one transaction, read from standard input."),
    "user": Place("user", "user", "Make users and give them roles."),
    "watch": Place(
        "watch",
        "watch",
        "Print the changes of KEY, of the keys from KEY up to RANGE_END, or of those that begin with a prefix.",
    ),
}


class Commands(Group):
    """All commands, each imported when it is asked for: building those of the others takes half of a start."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *PLACES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in PLACES and cmd_name not in self.commands:
            place = PLACES[cmd_name]
            self.add_command(getattr(importlib.import_module(f"cli.raftctl.{place.module}"), place.name))
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List all commands, importing none."""
        listed = click.Group(commands={name: click.Command(name, help=place.summary) for name, place in PLACES.items()})
        listed.commands.update(self.commands)
        listed.format_commands(ctx, formatter)


@click.group("raftctl", cls=Commands, context_settings=SETTINGS)
@global_options
def raftctl() -> None:
    """Talk to raftkv, or to any etcd v3.

    Global flags may stand before or after the command. Each is also read from the environment: --write-out from
    RAFTCTL_WRITE_OUT. A flag beats its variable. etcdctl's variables (ETCDCTL_…) are not read.

    \b
    Examples:
      raftctl put /registry/hello world
      raftctl get /registry --prefix
      raftctl --endpoints localhost:2379,localhost:22379 endpoint status -w table
    """
    help_unless_command()


@raftctl.command("version", cls=Command)
@click.argument("words", nargs=-1, metavar="")
@global_options
def version(words: tuple[str, ...]) -> None:
    """Print versions: raftctl's, and that of the etcd API it speaks.

    \b
    Example:
      raftctl version
    """
    print(f"raftctl version: {__version__}\nAPI version: {ETCD_API_VERSION.rpartition('.')[0]}")


@raftctl.command("help", cls=Command)
@click.argument("words", nargs=-1, metavar="[COMMAND]")
@global_options
def show_help(words: tuple[str, ...]) -> None:
    """Print the help of a command, as its --help does; without one, raftctl's. What is no command is said on stderr.

    \b
    Examples:
      raftctl help
      raftctl help snapshot save
    """
    context = click.get_current_context().find_root()
    for number, word in enumerate(words):
        command = context.command
        name = command.full_name(context, word) if isinstance(command, Group) else word
        found = command.get_command(context, name) if isinstance(command, Group) else None
        if found is None:
            if number == 0:
                print(f"Unknown help topic [{' '.join(f'`{one}`' for one in words)}]", file=sys.stderr)
            break
        context = click.Context(found, info_name=name, parent=context)
    print(context.get_help())


@raftctl.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@global_options
def completion(shell: str) -> None:
    """Print a script that teaches a shell to complete raftctl's commands and flags.

    \b
    Examples:
      source <(raftctl completion bash)
      raftctl completion zsh > "${fpath[1]}/_raftctl"
      raftctl completion fish > ~/.config/fish/completions/raftctl.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    print(found(raftctl, {}, "raftctl", "_RAFTCTL_COMPLETE").source())


def main() -> None:
    """Entry point of the command."""
    # The library's own lines would stand between ours. It looks when it is imported, which some flags bring about.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if "_RAFTCTL_COMPLETE" in os.environ:
        raftctl.main(prog_name="raftctl")
    session = Session()
    try:
        status = _run(session)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader had enough; say so as the signal would, and keep the interpreter from trying again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    sys.exit(status)


def _run(session: Session) -> int:
    try:
        # Not click's main(): it turns a broken pipe into an exit of its own.
        with raftctl.make_context("raftctl", sys.argv[1:], obj=session) as context:
            raftctl.invoke(context)
        return 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except Failure as error:
        return _fail(error, session)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        from raftkv.client import ClientError, NotConnected

        if not isinstance(error, ClientError):
            raise
        from cli.raftctl.failure import failure

        translated = failure(error)
        if isinstance(error, NotConnected):
            translated.notes += session.reasons(error.message)
        translated.__cause__ = error
        return _fail(translated, session)


def _fail(error: Failure, session: Session) -> int:
    sys.stdout.flush()
    if session.on("debug"):
        import traceback

        traceback.print_exception(error)
    for note in error.notes:
        print(note, file=sys.stderr)
    print(f"Error: {error}", file=sys.stderr)
    if isinstance(error, UsageFailure) and error.command:
        print(f"Run '{error.command} --help' for usage.", file=sys.stderr)
    return error.status


if __name__ == "__main__":
    main()
