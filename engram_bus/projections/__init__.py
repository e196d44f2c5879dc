"""PROJECTIONS: what is read from the log in processes of their own."""
