"""What one run is like, drawn from its seed: how large, how fast, which faults. Most of it is off in most runs (swarm
testing): a fault that is always there hides what only happens without it."""

from dataclasses import dataclass, field

from raftkv.simulation.network import Weather


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
    heartbeat_ms: int = 100
    election_ticks: int = 10
    snapshot_count: int = 10_000
    catch_up_entries: int = 5_000
    segment_bytes: int = 32 << 10
    on_wire: bool = False
    """Messages between members are encoded and decoded."""
    weather: Weather = field(default_factory=Weather)
    rates: list[float] = field(default_factory=list)
    offsets: list[float] = field(default_factory=list)
    faults: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.rates = self.rates or [1.0] * self.nodes
        self.offsets = self.offsets or [0.0] * self.nodes
