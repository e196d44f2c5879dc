"""DECISIONS: pure functions that turn a command into units, and units into state."""
