from engram_bus.pb import append_pb2 as _append_pb2
from engram_bus.pb import context_pb2 as _context_pb2
from engram_bus.pb import lock_pb2 as _lock_pb2
from engram_bus.pb import read_pb2 as _read_pb2
from engram_bus.pb import search_pb2 as _search_pb2
from engram_bus.pb import status_pb2 as _status_pb2
from engram_bus.pb import subscription_pb2 as _subscription_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
