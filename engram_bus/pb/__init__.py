"""The messages of proto/engram/v1 as Python, made by `make proto`: nothing here is written by hand."""
