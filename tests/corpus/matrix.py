"""The confusion matrix of verdicts: `python -m tests.corpus.matrix [--seeds 3] [--markdown] [--all] [--only TEXT]`.

Every member is written, ingested alone under the default limits, and compared: verdicts and codes, number of volumes, and every
voxel with the world. The exit is 1 where anything is not right.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.corpus.member import Member
from tests.corpus.members import MEMBERS, counts
from tests.corpus.run import Outcome, run_member
from tests.corpus.world import WORLDS, World


def outcomes(seeds: Sequence[int], members: Sequence[Member]) -> Iterator[Outcome]:
    """What becomes of members in the worlds of some seeds; what ends in an error is an outcome as well."""
    for seed in seeds:
        for member in members:
            with tempfile.TemporaryDirectory() as folder:
                yield outcome(member, WORLDS[seed], Path(folder) / "run")


def outcome(member: Member, world: World, root: Path) -> Outcome:
    """What becomes of one member."""
    try:
        return run_member(member, world, root)
    except Exception as error:  # noqa: BLE001 - any error is a wrong outcome of this member, not the end of the table
        problem = traceback.format_exc(limit=-2)
        name = type(error).__name__
        return Outcome(member.name, member.kind, member.owner, world.seed, "no error", name, [problem])


def table(found: Sequence[Outcome]) -> dict[str, Any]:
    """The matrix and the largest differences."""
    cells = Counter(
        (one.expected, one.got if one.expected != one.got or not one.problems else "other values") for one in found
    )
    compared = [volume for one in found if not one.problems for volume in one.compared]
    return {
        "members": len({one.name for one in found}),
        "runs": len(found),
        "wrong": sum(bool(one.problems) for one in found),
        "volumes": len(compared),
        "voxels_inside": sum(volume.num_inside for volume in compared),
        "max_inside_hu": max((volume.inside for volume in compared), default=0.0),
        "max_faces_hu": max((volume.faces for volume in compared), default=0.0),
        "slowest_s": max((one.seconds for one in found), default=0.0),
        "peak_mb": max((one.peak_mb for one in found), default=0),
        "matrix": [[*cell, number] for cell, number in sorted(cells.items())],
    }


def failures(found: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Those that are not right, by the area that decides."""
    wrong = [one for one in found if one.problems]
    return [
        {
            "owner": one.owner,
            "kind": one.kind,
            "name": one.name,
            "seed": one.seed,
            "expected": one.expected,
            "got": one.got,
            "problems": one.problems,
            "messages": one.messages[:3],
        }
        for one in sorted(wrong, key=lambda one: (one.owner, one.kind, one.name, one.seed))
    ]


def markdown(figures: dict[str, Any], wrong: Sequence[dict[str, Any]]) -> str:
    """The matrix as a table, and what is not right."""
    lines = [
        f"{figures['members']} members, {figures['runs']} runs, {figures['wrong']} wrong. {figures['volumes']} volumes: at most "
        f"{figures['max_inside_hu']:.2f} HU off inside, {figures['max_faces_hu']:.2f} HU at faces and fill.",
        "",
        "| expected | got | runs |",
        "|---|---|---|",
    ]
    for expected, got, number in figures["matrix"]:
        lines.append(f"| {expected} | {'the same' if expected == got else got} | {number} |")
    for one in wrong:
        lines += ["", f"* {one['owner']}, kind {one['kind']}: `{one['name']}` seed {one['seed']}"]
        lines += [f"  expected {one['expected']}, got {one['got']}", *(f"  - {p}" for p in one["problems"])]
        lines += [f"  - said: {message[:300]}" for message in one["messages"]]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--all", action="store_true", help="the slow members too (bombs)")
    parser.add_argument("--only", default="", help="members whose name, kind or owner contains this")
    chosen = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    members = [
        one
        for one in MEMBERS.values()
        if (chosen.all or not one.slow) and chosen.only in f"{one.name} {one.kind} {one.owner}"
    ]
    began = time.monotonic()
    found = list(outcomes(range(chosen.seeds), members))
    figures = table(found) | {"corpus": counts(), "seconds": round(time.monotonic() - began, 1)}
    wrong = failures(found)
    if chosen.markdown:
        sys.stdout.write(markdown(figures, wrong))
    else:
        sys.stdout.write(json.dumps(figures | {"failures": wrong}, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
