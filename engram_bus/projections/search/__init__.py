"""SEARCH: what was said, found by its words and by its meaning."""
