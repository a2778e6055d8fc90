"""Generate raftkv/pb from proto/, or check that it is fresh (--check)."""

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto"
TARGET = ROOT / "raftkv" / "pb"


def generate(into: Path) -> None:
    """Run protoc over every source; modules and typed stubs land in `into`/raftkv/pb."""
    sources = sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.proto"))
    status = protoc.main(["protoc", f"-I{SOURCES}", f"--python_out={into}", f"--pyi_out={into}", *sources])
    if status:
        sys.exit(status)


def check() -> None:
    """Exit with 1 when raftkv/pb is not what proto/ makes of it."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {path.name for path in (Path(scratch) / "raftkv" / "pb").iterdir()}
        known = {path.name for path in TARGET.iterdir() if path.name.split(".")[0].endswith("_pb2")}
        stale = sorted(
            name
            for name in fresh | known
            if name not in fresh & known
            or not filecmp.cmp(Path(scratch) / "raftkv" / "pb" / name, TARGET / name, shallow=False)
        )
    if stale:
        sys.exit(f"raftkv/pb is stale ({', '.join(stale)}): run make proto")
    print("raftkv/pb is fresh")


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        check()
    else:
        generate(ROOT)
