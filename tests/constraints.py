"""Print constraints.txt: the version of everything prdit and its `dev` extra pull in, as installed in this interpreter.

Only what is reachable from prdit's requirements is listed, so that a tool tried out by hand in the venv does not get in.
"""

import platform
import re
import sys
from importlib import metadata

from packaging.requirements import Requirement

HEADER = """\
# Exact version of every package prdit runs with (core and the extra `dev`), direct and transitive.
# Use:        pip install -c constraints.txt -e '.[dev]'      (make setup does)
# Regenerate: make constraints, in a .venv whose tests pass; it reads what is installed there.
# No local suffix such as +cpu: PyPI has no such version, and ==2.13.0 also accepts 2.13.0+cpu where an index offers it.
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_closure(root: str, extras: frozenset[str]) -> dict[str, metadata.Distribution]:
    """Every installed distribution reachable from `root` with these extras, by canonical name (root left out)."""
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [(root, extras)]
    while queue:
        name, wanted = queue.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        distribution = metadata.distribution(name)
        if name != root:
            found[name] = distribution
        for text in distribution.requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *wanted}):
                queue.append((canonical(requirement.name), frozenset(requirement.extras)))
    return found


def main() -> None:
    closure = installed_closure("prdit", frozenset({"dev"}))
    sys.stdout.write(HEADER)
    sys.stdout.write(f"# Made with Python {platform.python_version()} on {platform.system()} {platform.machine()}.\n")
    for name, distribution in sorted(closure.items()):
        sys.stdout.write(f"{name}=={distribution.version.partition('+')[0]}\n")


if __name__ == "__main__":
    main()
