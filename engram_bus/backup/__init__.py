"""A log taken elsewhere and brought back: backups, restored logs, exports, imports, repairs."""
