"""The kinds of values that settings have: what each text may be, and what is said of one that may not."""

import click

from raftkv.config import Members, url_problem
from raftkv.duration import parse_duration
from raftkv.rates import Rate, parse_rate


class Integer(click.IntRange):
    """A whole number within bounds; click would call what is no number "not a valid integer range"."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(str(value))
        except ValueError:
            self.fail(f"{str(value)!r} is not a number; expected is a whole number{self._bounds()}", param, ctx)
        return super().convert(number, param, ctx)

    def _bounds(self) -> str:
        if self.max is None:
            return "" if self.min is None else f" of at least {self.min}"
        return f" from {self.min} to {self.max}"


class Urls(click.ParamType[tuple[str, ...]]):
    """A comma-separated list of URLs `http://host:port`."""

    name = "URLS"

    def __init__(self, *, listen: bool) -> None:
        self._listen = listen

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        urls = tuple(url.strip() for url in str(value).split(","))
        for url in urls:
            problem = url_problem(url, listen=self._listen)
            if problem:
                self.fail(problem, param, ctx)
        if len(set(urls)) < len(urls):
            self.fail(f"a URL is given twice in {value}", param, ctx)
        return urls


class Texts(click.ParamType[tuple[str, ...]]):
    """A comma-separated list."""

    name = "LIST"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return tuple(text for text in (part.strip() for part in str(value).split(",")) if text)


class Rates(click.ParamType[tuple[Rate, ...]]):
    """A comma-separated list of `USER[/METHOD]=RATE[:BURST]`."""

    name = "RATE,…"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Rate, ...]:
        try:
            return tuple(parse_rate(text.strip()) for text in str(value).split(",") if text.strip())
        except ValueError as error:
            self.fail(str(error), param, ctx)


class InitialCluster(click.ParamType[Members]):
    """`name=url,name=url`; a name that occurs twice has two URLs."""

    name = "NAME=URL,…"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Members:
        members: dict[str, list[str]] = {}
        owners: dict[str, str] = {}
        for item in str(value).split(","):
            name, separator, url = item.strip().partition("=")
            if not separator or not name:
                self.fail(f"{item.strip()!r} is not of the form name=http://host:port", param, ctx)
            problem = url_problem(url, listen=False)
            if problem:
                self.fail(problem, param, ctx)
            if url in owners:
                self.fail(f"initial cluster {value} has duplicate url {url} (of {owners[url]} and {name})", param, ctx)
            owners[url] = name
            members.setdefault(name, []).append(url)
        return tuple((name, tuple(urls)) for name, urls in members.items())


class Duration(click.ParamType[float]):
    """A span of time; seconds."""

    name = "DURATION"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
