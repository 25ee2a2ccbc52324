"""Where the repository is, and the recorded arrays, if they are anywhere."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def parity_folder() -> Path:
    """Folder with the recorded arrays: `PRDIT_PARITY_DIR`, or beside the checkout."""
    return Path(os.environ.get("PRDIT_PARITY_DIR", REPOSITORY.parent / "shared" / "parity"))


def is_parity_set(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()
