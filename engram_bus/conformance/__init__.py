"""The exchanges that every server and every client must agree on, played over every transport a bus offers.

An independent reader of the protocol: of the bus it knows the messages of proto/engram/v1 and nothing else.
"""
