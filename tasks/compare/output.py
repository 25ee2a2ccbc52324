"""What a comparison leaves: comparison.json and one page, in a folder and on the runs in MLflow."""

import logging
from collections.abc import Sequence
from pathlib import Path

from storage.documents.comparison import Comparison
from storage.files import sha256_json, write_text_atomic
from storage.tracking import attach
from tasks.compare.page import groups, render
from tasks.compare.runs import Run

PAGE = "compare.html"
FOLDER = "compare"  # of a run's artifacts in MLflow
_TAG = "prdit.compare"  # the command of the newest comparison that a run is part of
logger = logging.getLogger("prdit.compare")


def folder_name(runs: Sequence[Run]) -> str:
    """A name for these reports in this order: the same reports, the same name."""
    return f"{runs[0].name}-{sha256_json([run.ref.digest for run in runs])[:8]}".replace(" ", "-")


def write(comparison: Comparison, runs: Sequence[Run], folder: Path, command: str) -> Path:
    """Write comparison.json and the page, and return the page's path.

    Args:
        comparison, runs: what was compared.
        folder: it is made.
        command: that repeats the comparison.
    Raises: UnwritableError; StorageError: a sampled volume cannot be read.
    """
    comparison.save(folder)
    page = folder / PAGE
    write_text_atomic(page, render(comparison, runs, groups(runs), command))
    return page


def attach_to_runs(runs: Sequence[Run], folder: Path, command: str) -> list[str]:
    """Put page and JSON on every compared run in MLflow, and return the ids of the runs that have them.

    A run that MLflow does not have, or a server that does not answer, costs a warning.
    """
    done = []
    for run in runs:
        if not run.mlflow_run_id:
            logger.warning("run %s is not in MLflow: the comparison is not put there", run.name)
            continue
        files = [folder / PAGE, folder / Comparison.NAME]
        failure = attach(
            run.mlflow_uri, run.mlflow_run_id, files, folder=f"{FOLDER}/{folder.name}", tags={_TAG: command}
        )
        if failure:
            logger.warning(
                "the comparison is not on run %s in MLflow (%s); compare again to try again", run.name, failure
            )
        else:
            done.append(run.mlflow_run_id)
    return done
