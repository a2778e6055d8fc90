"""What a fuzz target is, and the inputs that are kept for it."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True, slots=True)
class Target:
    """`check` takes an input and raises whatever should not have happened; `seeds` are sound inputs to begin with."""

    name: str
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    max_bytes: int = 4096

    def kept(self) -> list[bytes]:
        """The inputs of the corpus."""
        path = self._path
        lines = path.read_text().splitlines() if path.exists() else []
        return [base64.b64decode(line) for line in lines if line and not line.startswith("#")]

    def keep(self, data: bytes, why: str) -> None:
        """Add an input to the corpus, with a line that says why."""
        with self._path.open("a") as file:
            file.write(f"# {why}\n{base64.b64encode(data).decode()}\n")

    @property
    def _path(self) -> Path:
        return CORPUS / f"{self.name}.txt"


def digest(data: bytes) -> str:
    """A name for an input in what is printed."""
    return hashlib.sha256(data).hexdigest()[:12]
