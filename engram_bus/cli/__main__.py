"""`python -m engram_bus.cli`: the same as `engram`."""

from engram_bus.cli import main

main()
