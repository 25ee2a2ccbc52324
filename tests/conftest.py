"""Fixtures that all tests share: where the real CT and the parity arrays are, and quiet dependencies."""

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.parity.location import REPOSITORY, is_parity_set, parity_folder

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

# In the background of a shell Ctrl-C is ignored, here and in all that is started from here; tests send it, to both.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """Folder with the real chest CT (`PRDIT_CT_DIR`); read only, never copied into the repository."""
    folder = Path(os.environ.get("PRDIT_CT_DIR", REPOSITORY.parent / "shared" / "ct"))
    if not folder.is_dir():
        pytest.skip(f"real CT is not at {folder}; set PRDIT_CT_DIR to a folder that has dicom/ and robustness/")
    return folder


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Folder with the recorded arrays (`PRDIT_PARITY_DIR`)."""
    folder = parity_folder()
    if not is_parity_set(folder):
        if os.environ.get("PRDIT_REQUIRE_PARITY") == "1":
            pytest.fail(f"PRDIT_REQUIRE_PARITY=1 but {folder} has no manifest.json")
        pytest.skip(f"parity arrays are not at {folder}; set PRDIT_PARITY_DIR")
    return folder


@pytest.fixture(scope="session")
def mlflow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One SQLite file for every test that wants a real MLflow (its tables take seconds); each test has its own experiment."""
    return tmp_path_factory.mktemp("tracking") / "mlflow.db"
