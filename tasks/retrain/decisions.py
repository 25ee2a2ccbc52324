"""What changes champion and challenger: promotion, hold, rollback; each recorded in MLflow and as a `Decision`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.documents.promotion import Decision
from storage.registry import Registry


def promote(
    registry: Registry, folder: Path, version: int, *, reason: str, by: str, figures: Mapping[str, Any] | None = None
) -> Decision:
    """Make a version champion.

    Args:
        registry: MLflow's.
        folder: of the decisions, `<workdir>/decisions`.
        version: of the registered model.
        reason: for people.
        by: who decided.
        figures: what it rests on.
    Raises: InputError: there is no such version, it is champion already, or it is marked as refused (a patient was forgotten).
    """
    raise NotImplementedError


def hold(
    registry: Registry, folder: Path, version: int, *, reason: str, by: str, figures: Mapping[str, Any] | None = None
) -> Decision:
    """Record that a challenger does not become champion; it keeps the alias `challenger`."""
    raise NotImplementedError


def rollback(registry: Registry, folder: Path, *, reason: str = "", by: str = "command") -> Decision:
    """Make the champion before the last promotion champion again. Raises: InputError: there is nothing to roll back to."""
    raise NotImplementedError


def decisions(folder: Path) -> list[Decision]:
    """All decisions, oldest first. Raises: StorageError: one is damaged."""
    raise NotImplementedError
