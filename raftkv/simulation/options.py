"""What one run is like, drawn from its seed: how large, how fast, which faults. Most of it is off in most runs (swarm
testing): a fault that is always there hides what only happens without it."""

import random
from dataclasses import dataclass, field

from raftkv.api.slices import LARGE_KEYS
from raftkv.server.server import TURN_WORK
from raftkv.simulation.network import Weather

MEMBERS = "members"
"""The kind of fault, if it is one, that somebody changes the members all the time."""
TORN = "torn-change"
"""One that does not go without such a somebody, who starts and removes whom it leaves."""
OVERLOAD = "overload"
"""Many requests at one moment, at members that bear less than those that are shipped."""
SECONDS = 20.0
"""How long faults go on, unless somebody says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a member bears, as it ships or less: bytes of waiting proposals and of uncommitted entries, and appends on
    their way to one follower, in messages and bytes."""

    pending_bytes: int = 256 << 20
    uncommitted_bytes: int = 256 << 20
    inflight_messages: int = 256
    inflight_bytes: int = 64 << 20


AS_SHIPPED = Bounds()


@dataclass(slots=True, kw_only=True)
class Options:
    """Everything that a run depends on besides the code."""

    seed: int
    nodes: int = 3
    seconds: float = 30.0
    rate: float = 10.0
    """Operations of all clients together, per second."""
    clients: int = 4
    keys: int = 12
    registers: int = 3
    watchers: int = 2
    lockers: int = 1
    renewers: int = 0
    """Clients that keep a lease alive at one member, whatever becomes of it."""
    roles: bool = False
    """Whether somebody adds and removes roles."""
    value_bytes: int = 300
    heartbeat_ms: int = 100
    election_ticks: int = 10
    snapshot_count: int = 10_000
    catch_up_entries: int = 5_000
    segment_bytes: int = 32 << 10
    turn_work: int = TURN_WORK
    """How much is applied in one turn of a member's loop."""
    large_keys: int = LARGE_KEYS
    """How many keys are read in one turn of a member's loop."""
    on_wire: bool = False
    """Messages between members are encoded and decoded."""
    message_bytes: int = 1 << 20
    """How much data an append carries, and a page of committed entries; at least one entry."""
    bounds: Bounds = AS_SHIPPED
    weather: Weather = field(default_factory=Weather)
    rates: list[float] = field(default_factory=list)
    offsets: list[float] = field(default_factory=list)
    faults: frozenset[str] = frozenset()
    calm_seconds: float = 1.5
    """Mean time between two faults, in election timeouts."""

    def __post_init__(self) -> None:
        self.rates = self.rates or [1.0] * self.nodes
        self.offsets = self.offsets or [0.0] * self.nodes


def draw(
    seed: int,
    *,
    nodes: int | None = None,
    seconds: float | None = None,
    rate: float | None = None,
    faults: frozenset[str] | None = None,
    kinds: tuple[str, ...] = (),
) -> Options:
    """Draw a run from its seed; what is given is not drawn. `kinds` are the faults there are."""
    rng = random.Random(f"{seed}/options")
    drawn = rng.choice((3, 3, 3, 5))
    first = [kind for kind in kinds if kind not in (MEMBERS, TORN, OVERLOAD)]
    chosen = frozenset(kind for kind in first if rng.random() < rng.choice((0.1, 0.3, 0.6)))
    # From dice of their own: the other seeds stay as they are.
    dice, crowd = random.Random(f"{seed}/members"), random.Random(f"{seed}/overload")
    if dice.random() < 0.3 and MEMBERS in kinds:
        chosen |= {MEMBERS}
        if TORN in kinds and random.Random(f"{seed}/torn").random() < 0.3:
            chosen |= {TORN}
    if crowd.random() < 0.15 and OVERLOAD in kinds:
        chosen |= {OVERLOAD}
    active = chosen if faults is None else faults
    if TORN in active:
        active |= {MEMBERS}
    if MEMBERS in active and dice.random() < 0.25:
        # One that grows from a single member is at times two, of which neither can do without the other.
        drawn = 1
    count = nodes or drawn
    weather = Weather(
        latency=rng.choice((0.0002, 0.001, 0.01)),
        jitter=rng.choice((0.0, 0.0005, 0.01)),
        ordered=rng.random() < 0.6,
    )
    heartbeat_ms, election_ticks = rng.choice((50, 100, 100, 200)), rng.choice((3, 5, 10, 10))
    small_log = rng.random() < 0.5
    skewed = "clocks" in active
    options = Options(
        seed=seed,
        turn_work=random.Random(f"{seed}/turns").choice((1, 10, TURN_WORK)),
        large_keys=random.Random(f"{seed}/slices").choice((1, 3, LARGE_KEYS, LARGE_KEYS)),
        nodes=count,
        seconds=seconds or SECONDS,
        rate=rate or rng.choice((5.0, 10.0, 10.0, 20.0)),
        clients=rng.choice((2, 4, 6)),
        keys=rng.choice((3, 10, 40)),
        registers=rng.choice((1, 3)),
        watchers=rng.choice((0, 1, 3)),
        lockers=rng.choice((0, 0, 2)),
        value_bytes=rng.choice((20, 300, 5000)),
        snapshot_count=rng.choice((2, 10, 40)) if small_log else 10_000,
        catch_up_entries=rng.choice((0, 1, 5)) if small_log else 5_000,
        heartbeat_ms=heartbeat_ms,
        election_ticks=election_ticks,
        segment_bytes=rng.choice((4 << 10, 16 << 10, 64 << 10)),
        on_wire=rng.random() < 0.1,
        weather=weather,
        rates=[rng.choice((0.8, 1.0, 1.25)) for _ in range(count)] if skewed else [],
        offsets=[rng.random() * 1e6 for _ in range(count)] if skewed else [],
        faults=active,
        calm_seconds=rng.choice((0.7, 2.0, 5.0)),
        renewers=rng.choice((0, 1, 2)),
        message_bytes=rng.choice((1, 2000, 1 << 20)),
        roles=random.Random(f"{seed}/roles").random() < 0.3,
    )
    if OVERLOAD in active:
        options.bounds = _bounds(crowd, options.value_bytes)
    return options


def _bounds(rng: random.Random, value_bytes: int) -> Bounds:
    """Draw bounds that a crowd of clients reaches, and one request does not."""
    largest = 6 * (value_bytes + 60) + 200
    return Bounds(
        pending_bytes=rng.choice((2, 8)) * largest,
        uncommitted_bytes=rng.choice((4 << 10, 32 << 10)),
        inflight_messages=rng.choice((1, 2, 8)),
        inflight_bytes=rng.choice((2 << 10, 16 << 10)),
    )
