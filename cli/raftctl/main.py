"""The `raftctl` command."""

import sys
import traceback

import click

from cli.raftctl.cluster import endpoint, member
from cli.raftctl.failure import BAD_ARGUMENTS, INTERRUPTED, Failure
from cli.raftctl.kv import compaction, delete, get, put
from cli.raftctl.session import Session, global_options
from cli.raftctl.txn import txn
from raftkv import ETCD_API_VERSION, __version__

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group("raftctl", context_settings=SETTINGS, no_args_is_help=True)
@global_options
def raftctl() -> None:
    """Talk to raftkv, or to any etcd v3.

    Flags may stand before or after the command; each is also read from the environment as RAFTCTL_FLAG_NAME.

    \b
    Examples:
      raftctl put /registry/hello world
      raftctl get /registry --prefix
      raftctl --endpoints localhost:2379,localhost:22379 endpoint status -w table
    """


@raftctl.command("version")
@global_options
def version() -> None:
    """Print versions.

    \b
    Example:
      raftctl version
    """
    print(f"raftctl version: {__version__}\nAPI version: {ETCD_API_VERSION.rpartition('.')[0]}")


@raftctl.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for SHELL.

    \b
    Example:
      source <(raftctl completion bash)
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    print(found(raftctl, {}, "raftctl", "_RAFTCTL_COMPLETE").source())


for command in (put, get, delete, txn, compaction, endpoint, member):
    raftctl.add_command(command)


def main() -> None:
    """Entry point of the command."""
    session = Session()
    try:
        raftctl.main(standalone_mode=False, obj=session)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except click.UsageError as error:
        message = error.format_message()
        status = 1 if isinstance(error, click.NoSuchOption) or message.startswith("No such command") else BAD_ARGUMENTS
        _fail(message, status, session)
    except Failure as error:
        _fail(str(error), error.status, session)
    except BrokenPipeError:
        # The reader had enough.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        text = getattr(error, "message", None)
        if text is None:
            raise
        _fail(text, 1, session)


def _fail(message: str, status: int, session: Session) -> None:
    if session.debug:
        traceback.print_exc()
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
