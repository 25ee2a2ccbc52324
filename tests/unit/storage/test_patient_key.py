"""The secret of the patient keys: made once, whoever comes first, and readable by its owner only."""

import multiprocessing
from pathlib import Path

import pytest

from storage.errors import SourceError, StoreFormatError
from storage.patient_key import alike_key, check_patient_key, keys_of_no_ids, load_patient_key, patient_key
from tests.processes import PATIENCE_S


def load(path: Path, start: "multiprocessing.synchronize.Barrier", queue: "multiprocessing.Queue[bytes]") -> None:
    start.wait()
    queue.put(load_patient_key(path))


def test_all_who_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for round_ in range(10):
        path, start, queue = tmp_path / str(round_) / "key", context.Barrier(4), context.Queue()
        makers = [context.Process(target=load, args=(path, start, queue)) for _ in range(4)]
        for maker in makers:
            maker.start()
        keys = {queue.get(timeout=PATIENCE_S) for _ in makers}
        for maker in makers:
            maker.join()
        assert keys == {load_patient_key(path)}
        assert len(next(iter(keys))) == 32
        assert path.stat().st_mode & 0o777 == 0o600
        assert [p.name for p in path.parent.iterdir()] == ["key"]


@pytest.mark.parametrize("content", ["", "no hex", "00" * 15])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(SourceError, match="key"):
        load_patient_key(tmp_path / "key")


def test_a_store_knows_its_key(tmp_path: Path) -> None:
    check_patient_key(tmp_path, b"a" * 32, tmp_path / "key")
    check_patient_key(tmp_path, b"a" * 32, tmp_path / "key")
    with pytest.raises(StoreFormatError, match="was filled with"):
        check_patient_key(tmp_path, b"b" * 32, tmp_path / "key")


def test_patient_keys() -> None:
    known, unknown = patient_key(b"k", " P ", "1.2"), patient_key(b"k", " ", "1.2")
    assert known == (patient_key(b"k", "P", "other")[0], True)
    assert unknown[1] is False
    assert unknown != patient_key(b"k", "", "1.3")
    assert patient_key(b"l", "P", "")[0] != known[0]


@pytest.mark.parametrize(
    ("text", "is_none"),
    [
        ("Anonymous", True),
        ("ANON", True),
        ("unknown", True),
        ("0", True),
        ("None", True),
        ("1", False),
        ("ANON-0001", False),
    ],
)
def test_texts_that_are_no_ids(text: str, is_none: bool) -> None:
    assert (patient_key(b"k", text, "")[0] in keys_of_no_ids(b"k")) is is_none


def test_ids_that_are_alike() -> None:
    assert alike_key(b"k", "abc 1") == alike_key(b"k", " ABC1") != alike_key(b"k", "ABC2")
    assert alike_key(b"l", "ABC1") != alike_key(b"k", "ABC1")
    assert alike_key(b"k", " ") == ""
