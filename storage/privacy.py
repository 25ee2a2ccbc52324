"""Names of files and folders, and words of headers, may reveal who was scanned: ids in their place, and texts without them.

A message names a file only by `PATH`, which is replaced by the path for the person who runs the ingest, and by an opaque id in
everything that is stored or sent.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from storage.bucket_path import BucketPath
from storage.places import as_place
from storage.verdicts import REASONS

INGESTS, FEATURES, ENCODED = BESIDE = (".ingests", ".features", ".encoded")  # endings of the folders beside a store
PATH = "<path>"  # stands for the file that a message is about
REMOVED = "…"
_MIN_DIGITS = 5  # shorter numbers are counts and sizes
_MIN_NAME = 4  # shorter names of files and folders identify nobody, and occur in sentences
_NUMBERS = re.compile(r"[-+0-9.eE\\ ,]{0,48}")
_WORD = re.compile(r"[^\W_]{3,}")
_UID = re.compile(r"((?<![\w./-])[0-2](?:\.[0-9]+){4,}(?![\w/-]|\.\w))")  # which the store keeps anyway
_QUANTITY = re.compile(r"\d{1,4}(\.\d{1,3})?")  # a folder may be called so; it is no date, and sentences need it
_OWN_WORDS = frozenset(word.casefold() for row in REASONS.values() for word in _WORD.findall(row.sentence))


def opaque_id(key: bytes, kind: str, name: str) -> str:
    """`<kind>-<12 hex digits>` in place of a name: keyed, so that guessed names cannot be tried on it.

    Args:
        key: secret of the patient keys.
        kind: what is named; not `patient` or `series`, which are those of `storage.patient_key.patient_key`.
        name: of a file, folder or scan.
    """
    text = f"{kind}:{name}".encode("utf-8", "backslashreplace")
    return f"{kind}-{hmac.new(key, text, hashlib.sha256).hexdigest()[:12]}"


def beside_store(store_path: Path, ending: str) -> Path:
    """The path beside a store that has its name and an ending: for what may reveal who was scanned, and so is not in it.

    Of a store in a bucket it is on this machine, in `.prdit/s3/` of the current folder.
    """
    if isinstance(store_path, BucketPath):
        store_path = Path(".prdit", "s3", *store_path.parts[1:])
    place = store_path.resolve()
    return place.with_name(place.name + ending)


def words_of(text: str) -> frozenset[str]:
    """The words of at least 3 letters, and the numbers of at least 5 digits, in a text; without regard to case."""
    found = (word.casefold() for word in _WORD.findall(text))
    return frozenset(word for word in found if len(word) >= _MIN_DIGITS or not word.isdigit())


def with_placeholder(text: str, name: str) -> str:
    """A text with `PATH` wherever it has the name of a file."""
    return _whole(name).sub(lambda _: PATH, text) if name else text


@dataclass(frozen=True)
class Hidden:
    """What must not stand in a text about one scan.

    Attributes:
        source: folder of the source.
        files: relative paths of the scan's files.
        words: words of its headers that may identify a patient, see `words_of`.
    """

    source: str
    files: tuple[str, ...] = ()
    words: frozenset[str] = frozenset()

    def out_of(self, text: str) -> str:
        """The text without names of files and folders of the source, and without the words; UIDs stay, as folders bear them."""
        parts = _UID.split(without_quoted(without_folder(text, self.source)))
        return "".join(part if place % 2 else self._masked(part) for place, part in enumerate(parts))

    def _masked(self, text: str) -> str:
        for name in self._names(text):
            text = _whole(name).sub(REMOVED, text)
        hidden = self.words - _OWN_WORDS
        return _WORD.sub(lambda found: REMOVED if found[0].casefold() in hidden else found[0], text)

    def _names(self, text: str) -> list[str]:
        """The names that a text has, longest first: paths, and names of files and folders."""
        source = as_place(self.source)
        names = {source.name, source.resolve().name}
        for path in self.files:
            parts = PurePosixPath(path).parts
            names |= {path, *parts, *(Path(part).stem for part in parts)}
        found = [
            name
            for name in names
            if len(name) >= _MIN_NAME
            and name in text
            and name.casefold() not in _OWN_WORDS
            and not _QUANTITY.fullmatch(name)
        ]
        return sorted(found, key=len, reverse=True)


def without_folder(text: str, folder: str) -> str:
    """The text without the path of a folder, and without the paths of what lies in it."""
    paths = {folder, str(as_place(folder).resolve())} - {"/", ".", ""}
    for path in sorted(paths, key=len, reverse=True):
        text = re.sub(rf"""(?<![\w.]){re.escape(path.rstrip("/"))}(?![\w.-])(/[^'"\n:,(]*)?""", REMOVED, text)
    return text


def without_quoted(text: str) -> str:
    """The text without what it quotes, but for numbers: a header's values are quoted, and could be anything."""
    for mark in ("'", '"'):
        pattern = rf"{mark}([^{mark}\n]*){mark}"
        text = re.sub(pattern, lambda found: found[0] if _NUMBERS.fullmatch(found[1]) else REMOVED, text)
    return text


def without_quotes(text: str) -> str:
    """The text of an error without what it quotes, and without paths: both may come from a header or a name."""
    text = re.sub(r"""['"‘“`].*['"’”`]""", REMOVED, text)
    text = re.sub(r"""['"‘“`].*$""", REMOVED, text)
    return re.sub(r"\S*[/\\]\S*", REMOVED, text)


def _whole(name: str) -> re.Pattern[str]:
    """The name where it is not a part of a longer word or number."""
    return re.compile(rf"(?<![\w./-]){re.escape(name)}(?![\w/-]|\.\w)")


def shown(text: str, place: str | None) -> str:
    """A message with what stands for `PATH`."""
    return text.replace(PATH, place) if place else text
