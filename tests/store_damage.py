"""Ways in which a volume store can be damaged on disk."""

import shutil
from collections.abc import Callable
from pathlib import Path


def _only(pattern: str, store: Path) -> Path:
    return next(path for path in sorted(store.glob(pattern)) if path.is_file())


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def _edit_shape(path: Path) -> None:
    text = path.read_text()
    digit = text.index('"shape"') + text[text.index('"shape"') :].index("\n", 12) - 2
    digit = next(i for i in range(digit, len(text)) if text[i].isdigit())
    path.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])


# What is done to a store, and the kind of finding that names it.
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "byte flipped": (lambda store: flip(_only("volumes/*/0/c/0/0/0", store)), "volume"),
    "shard lost": (lambda store: _only("volumes/*/1/c/0/0/0", store).unlink(), "volume"),
    "shard truncated": (
        lambda store: _only("volumes/*/0/c/0/0/0", store).write_bytes(
            _only("volumes/*/0/c/0/0/0", store).read_bytes()[:-9]
        ),
        "volume",
    ),
    "metadata edited at equal size": (lambda store: _edit_shape(_only("volumes/*/0/zarr.json", store)), "volume"),
    "metadata of the group lost": (lambda store: _only("volumes/*/zarr.json", store).unlink(), "volume"),
    "record truncated": (
        lambda store: _only("commits/*.json", store).write_bytes(_only("commits/*.json", store).read_bytes()[:200]),
        "volume",
    ),
    "record lost": (lambda store: _only("commits/*.json", store).unlink(), "snapshot"),
    "folder lost": (lambda store: shutil.rmtree(_only("volumes/*/zarr.json", store).parent), "volume"),
    "root lost": (lambda store: (store / "zarr.json").unlink(), "root"),
    "root emptied": (lambda store: (store / "zarr.json").write_text("{}"), "root"),
    "snapshot edited": (
        lambda store: _only("snapshots/*.json", store).write_text(
            _only("snapshots/*.json", store).read_text().replace('"patient_known": true', '"patient_known": false')
        ),
        "snapshot",
    ),
    "snapshot lost": (lambda store: _only("snapshots/*.json", store).unlink(), "snapshot"),
    "history truncated": (lambda store: _only("history/*.json", store).write_bytes(b'{"format_ver'), "history"),
}
