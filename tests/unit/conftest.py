"""What unit tests of several areas use."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[object], None]:
    """Run a scenario in each kind of loop that members run on."""

    def go(scenario: object) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(scenario())  # type: ignore[operator]

    return go
