"""The whole corpus in the worlds of all seeds, bombs included: no verdict and no voxel is wrong."""

import logging
import warnings
from pathlib import Path
from typing import Any

from tests.corpus.matrix import failures, outcomes, table
from tests.corpus.members import MEMBERS, counts
from tests.corpus.world import WORLDS


def run(_: Path, rounds: int) -> dict[str, Any]:
    """Every member in the worlds of up to three seeds; the confusion matrix.

    Raises: AssertionError: something is not right.
    """
    members = list(MEMBERS.values())
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = list(outcomes(range(min(rounds, len(WORLDS))), members))
    finally:
        logging.disable(before)
    assert not failures(found), failures(found)
    return table(found) | {"corpus": counts()}
