"""Text files without what they say of a patient: JSON by its parts, other text by its lines, pages as a whole.

Words (keys, ids and UIDs) are matched as a whole: 1.2.3.4 is not found in 1.2.3.45. A PatientID can be any text, so it is
looked for with more care: never in digests, times and numbers, never as the name of a field; in JSON it is cut out of texts.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from pathlib import PurePath
from typing import Any

from storage.documents.checkpoint import Checkpoint
from storage.documents.comparison import Comparison
from storage.documents.document import Document
from storage.documents.report import Report
from storage.documents.samples import Samples
from storage.documents.split import Split
from storage.documents.verdicts import IngestReport
from storage.errors import StorageError
from storage.files import json_text

TEXTS = frozenset({".json", ".jsonl", ".md", ".txt", ".log", ".csv", ".html"})
_GONE = """<!doctype html><meta charset="utf-8"><title>Removed</title>
<p>This page showed volumes of a patient who was forgotten since, so it was removed. Evaluate again for a new one.</p>
"""
_MODELS: dict[str, type[Document]] = {
    model.NAME: model for model in (Checkpoint, Comparison, IngestReport, Report, Samples, Split)
}
_MIN_TEXT, _MIN_DIGITS = 4, 6  # a shorter PatientID occurs by chance
_TIME = r"\d{4}-\d\d(?:-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?)?"
_NUMBER = r"\d+\.\d+"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OTHER = re.compile(
    rf"data:[^\s\"')]+|sha256:\w*|\b(?:{_UUID}|[0-9a-f]{{16,}}|{_TIME})\b|\d+(?:\.\d+)+"  # pictures, digests, times, numbers
)
_CHANCE = re.compile(rf"{_TIME}|{_NUMBER}|\d{{1,{_MIN_DIGITS - 1}}}|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:\d\d)?")
_FIELD = re.compile(r"[a-z0-9_]+")  # what names of fields look like
_WHOLE = r"(?<![^\W_])(?<!\d\.)(?:{})(?![^\W_])(?!\.\d)"  # no letter or digit beside it, and no further part of a UID
_DIGITS = (
    r"\A{0}\Z|(?<![^/\s'\"]){0}(?=/)|(?<=/){0}(?![^/\s'\".])"  # a whole text, or a folder: elsewhere it is a number
)


class Names:
    """What names a patient in a text.

    Args:
        words: keys, ids, UIDs.
        text: PatientID; one that is too short, or reads as a number or a time, is not looked for.
    """

    def __init__(self, words: Collection[str], text: str = "") -> None:
        self._words = re.compile(_WHOLE.format("|".join(map(re.escape, sorted(words)))) if words else r"(?!)")
        looked_for = len(text) >= _MIN_TEXT and not _CHANCE.fullmatch(text)
        self.text = text if looked_for else ""
        known = (_DIGITS if text.isdigit() else _WHOLE).format(re.escape(text))
        other = "(?!)" if _OTHER.fullmatch(text) else _OTHER.pattern
        self._text = re.compile(f"(?P<other>{other})|{known}") if looked_for else None

    def worded(self, text: str) -> bool:
        """Whether a text has one of the words."""
        return self._words.search(text) is not None

    def named(self, text: str) -> bool:
        """Whether a text has one of the words, or the PatientID."""
        return self.worded(text) or (
            self._text is not None and any(found["other"] is None for found in self._text.finditer(text))
        )

    def without_text(self, text: str) -> str:
        """A text without the PatientID."""
        return self._text.sub(lambda found: found["other"] or "", text) if self._text else text

    def without_words(self, text: str) -> str:
        """A text without the words."""
        return self._words.sub("", text)

    def without_all(self, text: str) -> str:
        """A text without the words and the PatientID."""
        return self.without_text(self.without_words(text))


@lru_cache(maxsize=8)
def _names(words: frozenset[str], text: str) -> Names:
    return Names(words, text)


def without(
    name: str, data: bytes, words: Collection[str], text: str = "", model: type[Document] | None = None
) -> bytes | None:
    """The content of a text file without every part that names the patient; None where none does.

    Args:
        name: of the file: its ending says what is a part of it.
        data: its content.
        words: keys, ids and UIDs of the patient.
        text: PatientID, where it is known.
        model: of the document; default: that of files of this name. A document can be read afterwards as before: where it could not
            without a part, only the word is taken out.
    """
    content = data.decode("utf-8", "surrogateescape")
    names, path = _names(frozenset(words) - {""}, text), PurePath(name)
    if path.suffix == ".json":
        try:
            value = json.loads(content)
        except ValueError:
            return b"{}\n" if names.named(content) else None  # damaged, so that its parts are not known
        left = _readable(value, names, model or _MODELS.get(path.name))
        return None if left == value else json_text(left).encode()
    if path.suffix == ".html":
        return _GONE.encode() if names.named(content) else None
    has = _line_has if path.suffix == ".jsonl" else lambda line, names: names.named(line)
    lines = content.splitlines(keepends=True)
    kept = [line for line in lines if not has(line, names)]
    return None if len(kept) == len(lines) else "".join(kept).encode("utf-8", "surrogateescape")


def _readable(value: Any, names: Names, model: type[Document] | None) -> Any:
    """A JSON value without the patient: made in the first way after which its model still reads it."""
    ways: tuple[Callable[[], Any], ...] = (
        lambda: _pruned(value, names, names.without_text),
        lambda: _blanked(value, names, names.without_all),
        lambda: _pruned(value, names, str),  # `train`, say, of a field with few values is no PatientID
        lambda: _blanked(value, names, names.without_words),
    )
    first = ways[0]()
    if model is None or first == value or not _reads(value, model):
        return first
    return next((left for left in (way() for way in ways) if _reads(left, model)), first)


def _reads(value: Any, model: type[Document]) -> bool:
    try:
        model.from_json(value, model.WHAT)
    except StorageError:
        return False
    return True


def _pruned(value: Any, names: Names, change: Callable[[str], str]) -> Any:
    """Without the parts that have one of the words; texts that stay are changed."""
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if not (_key_says(key, names) or _says(one, names))}
        return {key: _pruned(one, names, change) for key, one in kept.items()}
    if isinstance(value, list):
        kept_entries = [one for one in value if not (_says(one, names) or _is_about(one, names))]
        return [_pruned(one, names, change) for one in kept_entries]
    return change(value) if isinstance(value, str) else value


def _blanked(value: Any, names: Names, change: Callable[[str], str]) -> Any:
    """With every field and entry, but with the texts changed; entries by an id of the patient are taken out."""
    if isinstance(value, dict):
        return {key: _blanked(one, names, change) for key, one in value.items() if not _key_says(key, names)}
    if isinstance(value, list):
        return [_blanked(one, names, change) for one in value]
    return change(value) if isinstance(value, str) else value


def _key_says(key: str, names: Names) -> bool:
    return names.worded(key) if _FIELD.fullmatch(key) else names.named(key)


def _says(value: Any, names: Names) -> bool:
    return isinstance(value, str) and names.worded(value)


def _is_about(value: Any, names: Names) -> bool:
    """Whether an entry of a list is about the patient: one of its own values says so."""
    return isinstance(value, dict) and any(_says(one, names) for one in value.values())


def _line_has(line: str, names: Names) -> bool:
    """Whether a line of JSON names the patient, by its texts: a number is no PatientID."""
    try:
        value = json.loads(line)
    except ValueError:
        return names.named(line)
    return any(names.named(text) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str):
        yield value
