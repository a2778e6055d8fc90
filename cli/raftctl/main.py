"""The `raftctl` command."""

import importlib
import os
import sys

import click

from cli.raftctl.failure import BROKEN_PIPE, INTERRUPTED, Failure, UsageFailure
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.session import Session, global_options
from raftkv import ETCD_API_VERSION, __version__

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

PLACES = {
    "alarm": "maintenance:alarm",
    "auth": "auth:auth",
    "check": "check:check",
    "compaction": "kv:compaction",
    "defrag": "maintenance:defrag",
    "del": "kv:delete",
    "elect": "elect:elect",
    "endpoint": "endpoint:endpoint",
    "get": "kv:get",
    "lease": "lease:lease",
    "lock": "lock:lock",
    "make-mirror": "make_mirror:make_mirror",
    "member": "member:member",
    "move-leader": "maintenance:move_leader",
    "put": "kv:put",
    "role": "role:role",
    "snapshot": "snapshot:snapshot",
    "txn": "txn:txn",
    "user": "user:user",
    "watch": "watch:watch",
}
"""Where each command is: module of `cli.raftctl` and name in it."""


class Commands(Group):
    """All commands, each imported when it is asked for: building those of the others takes half of a start."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *PLACES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in PLACES and cmd_name not in self.commands:
            module, _, name = PLACES[cmd_name].partition(":")
            self.add_command(getattr(importlib.import_module(f"cli.raftctl.{module}"), name))
        return super().get_command(ctx, cmd_name)


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
        from raftkv.client import ClientError

        if not isinstance(error, ClientError):
            raise
        from cli.raftctl.failure import failure

        translated = failure(error)
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
