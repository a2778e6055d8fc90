"""`python -m cli.raftctl`."""

from cli.raftctl.main import main

main()
