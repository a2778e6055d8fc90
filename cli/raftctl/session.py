"""What every command shares: the global flags, a client, a printer."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.raftctl import golang
from cli.raftctl.failure import BAD_ARGUMENTS, Failure

if TYPE_CHECKING:
    from cli.raftctl.printers import Printer
    from raftkv.client import Client

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("simple", "fields", "json", "protobuf", "table")


@dataclass(slots=True)
class Session:
    """The global flags, as far as they were given."""

    endpoints: str = "127.0.0.1:2379"
    command_timeout: str = "5s"
    dial_timeout: str = "2s"
    write_out: str = "simple"
    hex: bool = False
    debug: bool = False

    def client(self, endpoints: str | None = None) -> "AbstractContextManager[Client]":
        """Connect; grpc is imported only now, it is the slow part of the start."""
        from raftkv.client import Client

        try:
            return Client(endpoints or self.endpoints, timeout=golang.parse_duration(self.command_timeout))
        except ValueError as error:
            raise Failure(str(error), BAD_ARGUMENTS) from error

    def printer(self) -> "Printer":
        """The printer of --write-out."""
        from cli.raftctl.printers import make_printer

        if self.write_out not in FORMATS:
            raise Failure(f"unsupported output format {self.write_out}: use one of {', '.join(FORMATS)}", BAD_ARGUMENTS)
        return make_printer(self.write_out, hexadecimal=self.hex)


def _take(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    session = context.find_root().ensure_object(Session)
    if value is not None and value is not False:
        assert parameter.name is not None
        setattr(session, parameter.name, value)


def global_options(command: F) -> F:
    """Accept the global flags here: etcdctl takes them before and after the command's name."""
    options = [
        click.option(
            "--endpoints", metavar="HOST:PORT,…", envvar="RAFTCTL_ENDPOINTS", help="[default: 127.0.0.1:2379]"
        ),
        click.option("--command-timeout", metavar="DURATION", envvar="RAFTCTL_COMMAND_TIMEOUT", help="[default: 5s]"),
        click.option("--dial-timeout", metavar="DURATION", envvar="RAFTCTL_DIAL_TIMEOUT", help="[default: 2s]"),
        click.option(
            "-w",
            "--write-out",
            metavar="FORM",
            envvar="RAFTCTL_WRITE_OUT",
            help="|".join(FORMATS) + "  [default: simple]",
        ),
        click.option("--hex", is_flag=True, default=None, envvar="RAFTCTL_HEX", help="Print bytes as \\x escapes."),
        click.option("--debug", is_flag=True, default=None, envvar="RAFTCTL_DEBUG", help="Show tracebacks."),
    ]
    for option in reversed(options):
        command = option(command)
    for parameter in getattr(command, "__click_params__", [])[-len(options) :]:
        parameter.callback = _take
        parameter.expose_value = False
        parameter.is_eager = True
    return command


def session() -> Session:
    """The session of the running command."""
    return click.get_current_context().find_root().ensure_object(Session)
