"""Forgetting a patient deletes measurements of the patient's volumes and what was reconstructed from them; others stay."""

from pathlib import Path

import pytest

from storage.artifacts import SCRATCH, Ref, commit_artifact, load_provenance, verify_artifact
from storage.documents.measurement import Measurement
from storage.volume_store import VolumeStore
from tasks.patients.forget import Places, forget, plan
from tasks.patients.made import SHOWS, affected_by, made_in
from tasks.patients.patient import Patient
from tasks.reconstruct.measure import StoredVolume, load_measurement, measure_stage
from tasks.run.stage import RunContext
from tests.unit.tasks.test_reconstruct import HALF, Case


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def samples_of(work: Path, name: str, checkpoint: Ref, measurement: Ref) -> Ref:
    """A reconstruction, its files stand-ins."""
    folder = work / "reconstruct" / name
    (folder / "samples.zarr").mkdir(parents=True)
    for path in ("mean.nii.gz", "samples.zarr/chunk", "reconstruction.html"):
        (folder / path).write_text(f"voxels of {name}")  # equal files would be one artifact
    return commit_artifact(
        folder,
        "samples",
        stage="reconstruct",
        recipe=1,
        inputs={"checkpoint": checkpoint, "measurement": measurement},
        config={},
    )


def test_what_shows_a_patient_is_deleted_and_what_shows_others_stays(case: Case) -> None:
    work = case.context.workdir
    of_patient, of_other = case.measured(volume_id="v2"), case.measured(volume_id="v1")
    made = [samples_of(work, digit * 32, case.checkpoint, each) for digit, each in (("a", of_patient), ("b", of_other))]
    found = {one.made.digest: one for one in affected_by(["v2"], made_in(work), case.snapshot.path)}
    assert {digest for digest, one in found.items() if one.how == SHOWS} == {of_patient.digest, made[0].digest}
    assert found[made[0].digest].learned
    patient = Patient("2" * 32, frozenset({"v2"}), frozenset({"v2"}))
    places = Places(VolumeStore.open(case.snapshot.path), (work,), (), work / "inbox", work / "arrivals")
    forget(plan(patient, places, None), places)
    for ref in (of_patient, made[0]):
        left = [
            path.name
            for path in ref.path.rglob("*")
            if path.is_file() and path.relative_to(ref.path).parts[0] != SCRATCH
        ]
        assert left == ["provenance.json"]
        assert "a patient was forgotten" in load_provenance(ref).forgotten
    for ref in (of_other, made[1]):
        verify_artifact(ref)
        assert load_provenance(ref).forgotten == ""
    assert load_measurement(of_other)[0].simulated is not None


def test_unfinished_measurements_are_cleared(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(document: Measurement, folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Measurement, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        measure_stage(StoredVolume(case.snapshot, "v2"), HALF, case.setting, RunContext(workdir=case.context.workdir))
    (values,) = case.context.workdir.rglob(Measurement.VALUES)
    patient = Patient("2" * 32, frozenset({"v2"}), frozenset({"v2"}))
    work = case.context.workdir
    places = Places(VolumeStore.open(case.snapshot.path), (work,), (), work / "inbox", work / "arrivals")
    forget(plan(patient, places, None), places)
    assert not values.exists()
