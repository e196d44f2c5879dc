"""One bus in several processes: one that decides and records, several that speak to clients, one that looks after them.

supervisor      opens the ports, starts the others, starts a worker again that dies, and ends with the log process
log process     the writer, the log, the state, search: commits, and hands each batch to all workers
worker          an edge around a `Bus` whose writer is a line to the log process and whose log is read beside it
"""
