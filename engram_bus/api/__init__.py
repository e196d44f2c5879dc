"""WIRE IN: HTTP, its documents, and the sockets' protocol classes."""
