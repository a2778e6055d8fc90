"""The `raftctl` command."""

import os
import sys

import click

from cli.raftctl.auth import auth
from cli.raftctl.check import check
from cli.raftctl.elect import elect
from cli.raftctl.endpoint import endpoint
from cli.raftctl.failure import BROKEN_PIPE, INTERRUPTED, Failure, UsageFailure
from cli.raftctl.flags import Command, Group, help_unless_command
from cli.raftctl.kv import compaction, delete, get, put
from cli.raftctl.lease import lease
from cli.raftctl.lock import lock
from cli.raftctl.maintenance import alarm, defrag, move_leader
from cli.raftctl.make_mirror import make_mirror
from cli.raftctl.member import member
from cli.raftctl.role import role
from cli.raftctl.session import Session, global_options
from cli.raftctl.snapshot import snapshot
from cli.raftctl.txn import txn
from cli.raftctl.user import user
from cli.raftctl.watch import watch
from raftkv import ETCD_API_VERSION, __version__

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group("raftctl", cls=Group, context_settings=SETTINGS)
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


KEYS = (put, get, delete, txn, compaction, watch, lease, lock, elect)
UPKEEP = (endpoint, member, alarm, move_leader, defrag, snapshot, check, make_mirror)
ACCESS = (auth, user, role)

for command in (*KEYS, *ACCESS, *UPKEEP):
    raftctl.add_command(command)


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
