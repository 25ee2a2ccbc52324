"""The ledger of an inbox without the scans of a forgotten patient."""

import hashlib
from pathlib import Path

from storage.inbox_files import SeenFile
from storage.inbox_ledger import Ledger
from tasks.patients.arrivals import forget_arrivals
from tasks.patients.patient import Patient

GONE, THERE, OTHER = "1.2.826.77.1", "1.2.826.77.2", "1.2.826.77.11"


def test_scans_leave_the_ledger_with_their_files(tmp_path: Path) -> None:
    inbox, arrivals = tmp_path / "inbox", tmp_path / "arrivals"
    ledger = Ledger(arrivals)
    for uid in (GONE, THERE, OTHER):
        name = f"{uid}-image".encode()
        ledger.files.record([SeenFile(b"a", name, 1, 2, 3.0, True, hashlib.sha256(name).hexdigest(), uid, "dicom")])
        ledger.files.refresh(9.0)
        ledger.files.complete(uid, "quiet")
    assert ledger.new_batch(10) is not None
    ledger.set_batch(1, "listed")
    ledger.close()
    patient = Patient("ab" * 16, frozenset(), frozenset({GONE, THERE}))

    def left() -> set[str]:
        data = b"".join(path.read_bytes() for path in arrivals.glob("ledger.sqlite*"))
        return {uid for uid in (GONE, THERE, OTHER) if f"{uid}-".encode() in data}

    assert forget_arrivals(patient, tmp_path / "not mounted", arrivals) == 2
    assert left() == {GONE, THERE, OTHER}
    (inbox / "a").mkdir(parents=True)
    (inbox / "a" / f"{THERE}-image").touch()
    assert forget_arrivals(patient, inbox, arrivals) == 1
    assert left() == {THERE, OTHER}
    (inbox / "a" / f"{THERE}-image").unlink()
    nameless = Patient(patient.key, frozenset(), frozenset())  # a finished tombstone names no scans
    assert forget_arrivals(nameless, inbox, arrivals) == 0
    assert left() == {OTHER}
