"""One adapter for each way to speak to a bus; `table.py` has them all."""
