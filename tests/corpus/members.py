"""The whole corpus: importing this fills `tests.corpus.member.MEMBERS`."""

from tests.corpus import (
    members_files,
    members_formats,
    members_geometry,
    members_identity,
    members_multiframe,
    members_parts,
    members_valid,
    members_values,
)
from tests.corpus.member import MEMBERS

__all__ = ["MEMBERS", "counts"]

_WRITERS = (
    members_files,
    members_formats,
    members_geometry,
    members_identity,
    members_multiframe,
    members_parts,
    members_valid,
    members_values,
)


def counts() -> dict[str, int]:
    """How many members there are: broken ones, odd but good ones, and of each kind."""
    found = {"broken": 0, "good": 0}
    for member in MEMBERS.values():
        found["broken" if member.broken else "good"] += 1
        found[f"kind {member.kind}"] = found.get(f"kind {member.kind}", 0) + 1
    return found
