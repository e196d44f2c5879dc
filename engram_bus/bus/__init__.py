"""APPEND: what is let in, and the one writer."""
