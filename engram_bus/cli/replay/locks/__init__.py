"""`engram replay --locks` in its parts: the workload, the agents that play it, the fold that checks, the figures."""
