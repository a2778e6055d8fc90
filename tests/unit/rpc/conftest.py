"""The hosts that a transport test runs on."""

import pytest

from tests.unit.rpc.hosts import HOSTS


@pytest.fixture(params=sorted(HOSTS))
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)
