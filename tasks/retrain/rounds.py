"""Which retraining is under way, and which was the last: recorded before it begins, so that a killed one goes on as begun."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.documents.retraining import Outcome, Retraining
from storage.numbered import Numbered

FOLDER = "retrain"


@dataclass(frozen=True)
class Rounds:
    """The retrainings of a working folder.

    Args:
        workdir: working folder.
    """

    workdir: Path

    @property
    def _kept(self) -> Numbered[Retraining]:
        return Numbered(self.workdir / FOLDER, Retraining)

    def newest(self) -> Retraining | None:
        """The last one that was begun. Raises: StorageError: its record is damaged."""
        return self._kept.newest()

    def under_way(self, settings: str) -> Retraining | None:
        """The one that was begun and has not ended; one that was begun with other settings is given up.

        Args:
            settings: digest of policy and configuration.
        Raises: StorageError: its record is damaged.
        """
        newest = self.newest()
        if newest is None or newest.outcome:
            return None
        if newest.settings == settings:
            return newest
        self.end("given up")
        return None

    def last(self) -> Retraining | None:
        """The last one that came to an end. Raises: StorageError: a record is damaged."""
        kept = self._kept
        for number in reversed(kept.numbers()):
            found = kept.read(number)
            if found.outcome in ("promoted", "held", "failed"):
                return found
        return None

    def begin(self, retraining: Retraining) -> Retraining:
        """Record one as begun. Raises: UnwritableError."""
        return self._kept.update(lambda _: retraining)

    def end(self, outcome: Outcome, challenger: int | None = None) -> None:
        """Record how the one that is under way has ended; nothing happens where none is. Raises: StorageError."""

        def change(newest: Retraining | None) -> Retraining:
            if newest is None or newest.outcome:
                raise _NoneUnderWay
            ended = datetime.now(UTC).isoformat(timespec="seconds")
            return newest.model_copy(update={"outcome": outcome, "ended": ended, "challenger": challenger})

        try:
            self._kept.update(change)
        except _NoneUnderWay:
            return


class _NoneUnderWay(Exception):
    """No retraining is under way."""
