"""The log on disk; the only place that knows LMDB."""

from engram_bus.log.lmdb.log import LmdbLog
from engram_bus.log.lmdb.readers import IndexReader, LogReader

__all__ = ["IndexReader", "LmdbLog", "LogReader"]
