"""Every document: what is written is read, and what is wrong with a file is said in one sentence that names it."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from storage.documents.document import Document
from storage.documents.run_record import RunDocument
from storage.documents.samples import Redraw, Samples, Verdict
from storage.documents.split import Split
from storage.documents.training_state import TrainingState
from storage.errors import DamagedArtifactError, StorageError
from tests.unit.storage.documents.examples import EXAMPLES, FAULTS

every_document = pytest.mark.parametrize("document", EXAMPLES.values(), ids=EXAMPLES)


def refused(path: Path, kind: type[Document], error: type[StorageError] = DamagedArtifactError) -> str:
    with pytest.raises(error) as raised:
        kind.read(path)
    assert type(raised.value) is error
    message = str(raised.value)
    assert str(path) in message
    assert message.isprintable()  # one line
    return message


def test_there_is_an_example_of_every_document() -> None:
    def kinds(base: type[Document]) -> set[type[Document]]:
        return {found for child in base.__subclasses__() for found in (child, *kinds(child))}

    ours = {
        kind for kind in kinds(Document) if kind.__module__.startswith("storage.documents.") and hasattr(kind, "FORMAT")
    }
    assert ours - {type(document) for document in EXAMPLES.values()} == set()


@every_document
def test_what_is_written_is_read(tmp_path: Path, document: Document) -> None:
    path = tmp_path / "folder" / "document.json"
    document.write(path)
    assert type(document).read(path) == document
    assert path.read_bytes() == document.to_bytes() == type(document).read(path).to_bytes()
    assert next(iter(json.loads(path.read_bytes()))) == "format_version"
    assert not document.put(path)


@every_document
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_in_one_sentence(tmp_path: Path, document: Document, fault: str) -> None:
    path = tmp_path / "document.json"
    change, error = FAULTS[fault]
    content = change(document.to_bytes())
    assert content != document.to_bytes()
    if content is not None:
        path.write_bytes(content)
    message = refused(path, type(document), error)
    assert type(document).remedy(path) in message or error.__name__ == "VersionError"


@every_document
def test_a_value_of_another_type_is_refused_by_its_key(tmp_path: Path, document: Document) -> None:
    path = tmp_path / "document.json"
    content: dict[str, Any] = document.to_json()
    for key, value in content.items():
        if key == "format_version":
            continue
        path.write_text(json.dumps(content | {key: 7 if isinstance(value, dict) else {"unexpected": [1]}}))
        assert f": {key}" in refused(path, type(document))


@every_document
def test_a_folder_in_its_place_and_a_file_as_its_folder_are_refused(tmp_path: Path, document: Document) -> None:
    assert "Is a directory" in refused(tmp_path, type(document))
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused(tmp_path / "file" / "document.json", type(document))


@every_document
def test_documents_are_frozen(document: Document) -> None:
    name = next(iter(type(document).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(document, name, None)


def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.json"
    path.write_text(EXAMPLES["samples"].to_bytes().decode().replace('"spacing_mm": 4.0', '"spacing_mm": NaN'))
    assert "spacing_mm" in refused(path, Samples)


def test_samples_without_volumes_or_of_different_lengths_are_refused(tmp_path: Path) -> None:
    path, content = tmp_path / "samples.json", EXAMPLES["samples"].to_json()
    path.write_text(json.dumps(content | {"seeds": [1, 2]}))
    assert "differ in length" in refused(path, Samples)
    path.write_text(json.dumps(content | {"num_asked": 3}))
    assert "num_asked is 3, and it has 1 volumes and 1 exclusions" in refused(path, Samples)
    of_each = ("volume_ids", "seeds", "clipped_fraction", "outside_window_fraction", "verdicts")
    nothing: dict[str, Any] = {name: [] for name in of_each} | {
        "redraw": content["redraw"] | {"tries": []},
        "num_asked": 1,
    }
    path.write_text(json.dumps(content | nothing))
    assert "no volume" in refused(path, Samples)


def test_samples_of_format_1_were_drawn_once_and_not_judged(tmp_path: Path) -> None:
    path, content = tmp_path / "samples.json", EXAMPLES["samples"].to_json()
    new = ("num_asked", "verdicts", "redraw", "excluded")
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in new} | {"format_version": 1}))
    samples = Samples.read(path)
    assert (samples.num_asked, samples.excluded, samples.verdicts) == (1, [], [Verdict()])
    assert samples.redraw == Redraw(most=0, judged=False, num_redrawn=0, tries=[1])


def test_a_training_state_has_all_its_arrays(tmp_path: Path) -> None:
    path, content = tmp_path / "state.json", EXAMPLES["training state"].to_json()
    path.write_text(json.dumps(content | {"files": {"model": "0", "ema": "0"}}))
    assert "no arrays of buffers, optimizer" in refused(path, TrainingState)


def test_roles_of_a_split() -> None:
    split = EXAMPLES["split"]
    assert isinstance(split, Split)
    assert (split.role("train"), split.role("val"), split.role("test")) == (["a", "b"], ["c"], [])
    assert split.volume_ids == ["a", "b", "c"]


def test_the_latest_run_is_the_one_written_last(tmp_path: Path) -> None:
    run = EXAMPLES["run"]
    assert isinstance(run, RunDocument)
    for number in (1, 2):
        run.model_copy(update={"mlflow_run_id": str(number)}).save_run(tmp_path / f"run-{number}")
    assert RunDocument.latest(tmp_path).mlflow_run_id == "2"
    assert RunDocument.load(tmp_path / "run-1").mlflow_run_id == "1"


def test_nobody_else_names_these_files(repository: Path) -> None:
    names = {type(document).NAME for document in EXAMPLES.values() if hasattr(document, "NAME")} | {RunDocument.LATEST}
    assert "checkpoint.json" in names
    modules = [
        path for room in ("flows", "tasks", "storage", "prdit_models") for path in (repository / room).rglob("*.py")
    ]
    for path in modules:
        if path.parent.name != "documents":
            text = path.read_text()
            found = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)} & names
            assert not found, f"{path} names {found}"
