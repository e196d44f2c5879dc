"""`engram replay` in its parts: the recording, the player, the subscriber that watches, the summary."""
