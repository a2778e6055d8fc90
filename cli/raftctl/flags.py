"""Flags as etcdctl takes them, on click: `--flag=false`, `-w=json`, `-wjson`.

click's own parser gets arguments that are rewritten to what it takes too; what neither takes is refused here, in
etcdctl's words.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from cli.raftctl import golang
from cli.raftctl.failure import UsageFailure

T = TypeVar("T")


class GoType(click.ParamType):  # type: ignore[type-arg]
    """A flag's type, by a function that parses it or raises ValueError with the reason."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            raise invalid(value, param, error) from error


INT = GoType("int", golang.parse_int)
UINT = GoType("uint", golang.parse_uint)
DURATION = GoType("duration", golang.parse_duration)


def invalid(value: str, param: click.Parameter | None, error: ValueError) -> UsageFailure:
    """The refusal of a flag's value."""
    names = ", ".join(sorted(param.opts, key=len)) if param is not None else ""
    return UsageFailure(f'invalid argument "{value}" for "{names}" flag: {error}')


class _Rewriter:
    """Rewrites one command's arguments; `switch_off` hears of flags that were given as false."""

    def __init__(self, parameters: list[click.Parameter], switch_off: Callable[[click.Option], None]) -> None:
        options = [parameter for parameter in parameters if isinstance(parameter, click.Option)]
        self._options = {name: option for option in options for name in option.opts}
        self._switch_off = switch_off

    def rewrite(self, arguments: list[str], *, interspersed: bool) -> list[str]:
        """With `interspersed` flags may stand behind the first plain word; for a group that is the command."""
        out: list[str] = []
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*out, word, *rest]
            if word.startswith("--"):
                out += self._long(word, rest)
            elif word.startswith("-") and len(word) > 1:
                out += self._short(word, rest)
            elif interspersed:
                out.append(word)
            else:
                return [*out, word, *rest]
        return out

    def _long(self, word: str, rest: list[str]) -> list[str]:
        name, given, value = word.partition("=")
        option = self._options.get(name)
        if option is None:
            raise UsageFailure(f"unknown flag: {name}")
        if option.is_flag:
            return self._switch(option, name, value if given else "true")
        if not given:
            if not rest:
                raise UsageFailure(f"flag needs an argument: {name}")
            value = rest.pop(0)
        return [f"{name}={value}"]

    def _short(self, word: str, rest: list[str]) -> list[str]:
        out: list[str] = []
        letters = word[1:]
        while letters:
            name, letters = "-" + letters[0], letters[1:]
            option = self._options.get(name)
            if option is None:
                raise UsageFailure(f"unknown shorthand flag: '{name[1]}' in {word}")
            if option.is_flag:
                given = letters.startswith("=")
                out += self._switch(option, name, letters[1:] if given else "true")
                letters = "" if given else letters
                continue
            if not letters and not rest:
                raise UsageFailure(f"flag needs an argument: '{name[1]}' in {word}")
            value = letters.removeprefix("=") if letters else rest.pop(0)
            return [*out, name, value]
        return out

    def _switch(self, option: click.Option, name: str, value: str) -> list[str]:
        try:
            on = golang.parse_bool(value)
        except ValueError as error:
            raise invalid(value, option, error) from error
        if not on:
            self._switch_off(option)
        return [name] if on else []


def _switch_off(context: click.Context) -> Callable[[click.Option], None]:
    def tell(option: click.Option) -> None:
        if option.callback is not None:
            option.callback(context, option, False)

    return tell


@contextlib.contextmanager
def _located(context: click.Context) -> Iterator[None]:
    """Make what is refused inside point at this command's help."""
    try:
        yield
    except UsageFailure as error:
        error.command = error.command or context.command_path
        raise
    except click.UsageError as error:
        raise UsageFailure(error.format_message(), command=context.command_path) from error


class Command(click.Command):
    """A command with etcdctl's manners."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _located(ctx):
            if not ctx.resilient_parsing:
                args = _Rewriter(self.get_params(ctx), _switch_off(ctx)).rewrite(args, interspersed=True)
            return super().parse_args(ctx, args)


class Group(click.Group):
    """A group of commands; without one it shows its help."""

    command_class = Command

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        attributes.setdefault("invoke_without_command", True)
        super().__init__(*arguments, **attributes)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _located(ctx):
            if not ctx.resilient_parsing:
                args = _Rewriter(self.get_params(ctx), _switch_off(ctx)).rewrite(args, interspersed=False)
            return super().parse_args(ctx, args)

    def full_name(self, ctx: click.Context, word: str) -> str:
        """The one command that begins with a word, as in etcdctl; the word itself if it is one, or there are more."""
        names = self.list_commands(ctx)
        if word in names:
            return word
        meant = [name for name in names if name.startswith(word)]
        return meant[0] if len(meant) == 1 else word

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        args = [self.full_name(ctx, args[0]), *args[1:]]
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            path = ctx.command_path
            message = f'unknown command "{args[0]}" for "{path}"'
            # etcdctl says it twice.
            raise UsageFailure(message, notes=(f"Error: {message}", f"Run '{path} --help' for usage."))
        return super().resolve_command(ctx, args)


def help_unless_command() -> None:
    """What a group's function does: show the help when no command was named."""
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


Group.group_class = Group
