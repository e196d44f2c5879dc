"""Every kind of thing that is stored, with what any bytes in its place may come to."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tests.fuzz import files, starts, stored
from tests.fuzz.world import TENANT, World

Check = Callable[[World, bytes], str]
"""Says in a word what came of an input. Raises what must never come of any."""


class Target(NamedTuple):
    """`seeds` are what is whole, to be mutated."""

    check: Check
    seeds: Callable[[World], Iterable[bytes]]
    forks: bool = False
    """Whether an input may end the process that reads it: then it is read in a fork, and a loop of our own searches."""


TARGETS = {
    "record": Target(stored.check_record, stored.record_seeds),
    "identity": Target(starts.check_of("identity"), starts.seeds_of("identity")),
    "tenant": Target(starts.check_of(TENANT), starts.seeds_of(TENANT)),
    "header": Target(starts.check_header, starts.header_seeds),
    "log-segment": Target(starts.check_log_segment, starts.log_segment_seeds),
    "mark": Target(starts.check_mark, starts.seeds_of(starts.MARK)),
    "index": Target(starts.check_index, starts.index_seeds),
    "snapshot": Target(starts.check_snapshot, starts.snapshot_seeds),
    "lock": Target(starts.check_lock, starts.lock_seeds),
    "tables": Target(files.check_tables, files.table_seeds),
    "settings": Target(stored.check_settings, stored.settings_seeds),
    "manifest": Target(stored.check_manifest, stored.manifest_seeds),
    "segment": Target(stored.check_segment, stored.segment_seeds),
    "export": Target(stored.check_export, stored.export_seeds),
    "log-pages": Target(files.check_log_pages, files.page_seeds, forks=True),
    "index-pages": Target(files.check_index_pages, files.page_seeds, forks=True),
    "search-files": Target(files.check_search_files, files.search_seeds, forks=True),
}
