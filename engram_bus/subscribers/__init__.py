"""WIRE OUT: how subscribers are spoken to over each transport."""
