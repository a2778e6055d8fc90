"""`python -m tests.partition.mutated MUTANT …`: raftkv with a bug that was put back on purpose."""

import sys

from raftkv.main import main
from raftkv.simulation.mutants import MUTANTS

if __name__ == "__main__":
    MUTANTS[sys.argv.pop(1)]()
    sys.exit(main())
