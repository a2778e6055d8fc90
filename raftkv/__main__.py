"""`python -m raftkv`."""

import sys

from raftkv.main import main

sys.exit(main())
