"""DISK: the append-only log and what it promises."""
