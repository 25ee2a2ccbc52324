"""What names a patient is taken out of text files; what only looks like it stays, and documents can be read afterwards."""

import json

import pytest

from storage.documents.promotion import Decision
from storage.documents.split import Split
from tasks.patients.redact import without

UID, OTHER, KEY = "1.2.3.4", "1.2.3.45", "ab12" * 8
DECISION = Decision(
    action="held",
    reason=f"worse on the scan {UID}. On 2026 volumes the copies are the same.",
    champion=2026,
    champion_before=None,
    checkpoint="sha256:" + "1234" * 16,
    snapshot="sha256:" + "1234" * 16,
    figures={"volumes": {KEY: 1.0, "other": 2.0}, "seen": "train"},
    by="policy default",
    created="2026-11-29T20:26:00+00:00",
)


@pytest.mark.parametrize(
    "text", ["2026", "1234", "12341234", "20261129", "2026-11-29", "sha256", "1.5", "created", "volumes", "held"]
)
def test_a_patient_id_that_occurs_by_chance_destroys_nothing(text: str) -> None:
    data = DECISION.to_bytes()
    left = without("000001.json", data, {"9.9.9"}, text, Decision)
    after = Decision.parse(left or data, "x")
    assert after.model_copy(update={"reason": ""}) == DECISION.model_copy(update={"reason": ""})


def test_words_are_whole() -> None:
    entries = [{"series": UID}, {"series": OTHER}, {"series": f"9.{UID}"}, {"series": f"x{UID}"}, {"key": f"{KEY}ab"}]
    left = without("x.json", json.dumps({"entries": entries, KEY: 1, f"{KEY}0": 2}).encode(), {UID, KEY})
    assert left is not None
    assert json.loads(left) == {"entries": entries[1:], f"{KEY}0": 2}
    lines = b"scan 1.2.3.4.\nscan 1.2.3.45\nfile 1.2.3.4.dcm\nfile a_1.2.3.4_b\nscan 1.2.3.4.5\n"
    assert without("x.log", lines, {UID}) == b"scan 1.2.3.45\nscan 1.2.3.4.5\n"
    assert without("x.log", b"scan 1.2.3.45\n", {UID}) is None


def test_a_document_can_be_read_afterwards() -> None:
    left = without("000001.json", DECISION.to_bytes(), {UID, KEY}, "", Decision)
    assert left is not None
    after = Decision.parse(left, "x")
    assert UID not in after.reason
    assert after.reason.startswith("worse on the scan ")  # a required field: only the UID is gone
    assert after.figures == {"volumes": {"other": 2.0}, "seen": "train"}
    split = Split(roles={"train": ["v"]}, patients={"train": [KEY, "b"]}, notes=[])
    left = without("split.json", split.to_bytes(), {KEY}, "train")
    assert left is not None
    assert Split.parse(left, "x") == Split(roles={"train": ["v"]}, patients={"train": ["b"]}, notes=[])


def test_a_patient_id_is_taken_out_of_texts() -> None:
    value = {"warnings": ["LUNG1-007 is odd", "LUNG1-0071 is not"], "LUNG1-007": 1, "path": "a/LUNG1-007/b.dcm"}
    left = without("x.json", json.dumps(value).encode(), {UID}, "LUNG1-007")
    assert left is not None
    assert "LUNG1-007" not in json.loads(left)
    assert json.loads(left)["warnings"] == [" is odd", "LUNG1-0071 is not"]
    assert json.loads(left)["path"] == "a//b.dcm"
    assert without("x.log", b"2026-01-01 LUNG1-007\nLUNG1-0071\n", {UID}, "LUNG1-007") == b"LUNG1-0071\n"
    lines = b'{"step": 123456}\n{"path": "123456/a.dcm"}\n{"text": "step 123456"}\n'
    assert without("x.jsonl", lines, {UID}, "123456") == b'{"step": 123456}\n{"text": "step 123456"}\n'
    page = b'<img src="data:image/png;base64,AA/LUNG+BB">'
    assert without("x.html", page, {UID}, "LUNG") is None
    assert without("x.html", page + b"<p>LUNG</p>", {UID}, "LUNG") is not None
    assert without("x.json", b'{"a": "M\\u00fcller1"}', {UID}, "Müller1") == b'{\n  "a": ""\n}\n'
