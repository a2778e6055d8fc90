"""All targets by name."""

from tests.fuzz import calls, files, network
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {target.name: target for target in (*network.TARGETS, *files.TARGETS, *calls.TARGETS)}
