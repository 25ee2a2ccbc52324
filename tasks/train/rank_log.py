"""What the first rank warns of, shown where the training was started: its own log is in the stage's folder."""

import logging
import re
from pathlib import Path

_LINE = re.compile(r"^\S+ \S+ (WARNING|ERROR) \[rank 0\] [\w.]+: (.*)$")
_MOST = 5  # lines at a time; the log has the rest
logger = logging.getLogger("prdit.train")


class RankLog:
    """Follows the logs of all nodes from their present ends.

    Args:
        scratch: folder of the logs.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._read = {path: path.stat().st_size for path in self._paths()}

    def poll(self) -> None:
        """Pass on the warnings and errors that are new."""
        found = [line for path in self._paths() for line in self._new(path)]
        for level, text in found[:_MOST]:
            logger.log(logging.getLevelName(level), "%s", text)
        if len(found) > _MOST:
            logger.warning("and %d more, see %s/node-*.log", len(found) - _MOST, self._scratch)

    def _paths(self) -> list[Path]:
        return sorted(self._scratch.glob("node-*.log"))

    def _new(self, path: Path) -> list[tuple[str, str]]:
        with path.open("rb") as stream:
            stream.seek(self._read.get(path, 0))
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read[path] = self._read.get(path, 0) + len(whole)
        lines = whole.decode(errors="replace").splitlines()
        return [(match[1], match[2]) for line in lines if (match := _LINE.match(line))]
