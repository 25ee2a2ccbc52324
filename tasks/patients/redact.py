"""Text files without what they say of a patient: JSON by its parts, other text by its lines, pages as a whole."""

import json
from collections.abc import Collection
from pathlib import PurePath
from typing import Any

from storage.files import json_text

TEXTS = frozenset({".json", ".jsonl", ".md", ".txt", ".log", ".csv", ".html"})
_GONE = """<!doctype html><meta charset="utf-8"><title>Removed</title>
<p>This page showed volumes of a patient who was forgotten since, so it was removed. Evaluate again for a new one.</p>
"""


def without(name: str, data: bytes, words: Collection[str]) -> bytes | None:
    """The content of a text file without every part that has one of the words; None where it has none of them.

    Args:
        name: of the file: its ending says what is a part of it.
        data: its content.
        words: what names the patient.
    """
    text = data.decode("utf-8", "surrogateescape")
    if not any(word in text for word in words):
        return None
    ending = PurePath(name).suffix
    if ending == ".html":
        return _GONE.encode()
    if ending == ".json":
        try:
            return json_text(_pruned(json.loads(text), words)).encode()
        except ValueError:
            return b"{}\n"  # damaged, so that its parts are not known
    return "".join(line for line in text.splitlines(keepends=True) if not _has(line, words)).encode(
        "utf-8", "surrogateescape"
    )


def _pruned(value: Any, words: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(one, words) for key, one in value.items() if not (_has(key, words) or _has(one, words))}
    if isinstance(value, list):
        return [_pruned(one, words) for one in value if not (_has(one, words) or _names(one, words))]
    return value


def _has(value: Any, words: Collection[str]) -> bool:
    return isinstance(value, str) and any(word in value for word in words)


def _names(value: Any, words: Collection[str]) -> bool:
    """Whether an entry of a list is about the patient: one of its own values says so."""
    return isinstance(value, dict) and any(_has(one, words) for one in value.values())
