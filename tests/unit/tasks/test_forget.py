"""Forgetting a patient: nothing stays of one whose scans are in a store, in artifacts and in caches; nothing comes back."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from storage.artifacts import Ref, commit_artifact, load_provenance, verify_artifact
from storage.documents.snapshot import Roles
from storage.documents.tombstone import Tombstone
from storage.errors import ForgottenError, InputError, LockedError, StorageError
from storage.files import json_text
from storage.locks import locked
from storage.numbered import Numbered
from storage.patient_key import load_patient_key
from storage.privacy import beside_store
from storage.snapshots import history, load_snapshot, newest, open_snapshot
from storage.tombstones import add_tombstone, forgotten, tombstone_path
from storage.volume_store import VolumeStore
from tasks.ingest.run import ingest
from tasks.maintain.verify import verify_store
from tasks.patients.forget import Places, Plan, forget, plan
from tasks.patients.lineage import Known, of_artifacts, of_volumes
from tasks.patients.made import made_in
from tasks.patients.patient import find_patient, key_of, key_of_volume
from tasks.run.runners import Local
from tasks.split.config import SplitConfig
from tasks.split.run import split
from tests.factories import small_ingest
from tests.parity.location import REPOSITORY
from tests.traced_kill import killed_at
from tests.unit.storage.dicom_files import write_series

CONFIG = small_ingest(num_levels=2)
NAME = "ZQFORGET77"
UID, BROKEN = "1.2.826.77.1", "1.2.826.77.2"
REPORT = '<p>volume {volume}</p><img src="data:image/png;base64,{picture}">'


def noise(world: np.ndarray) -> np.ndarray:
    """HU that no other scan has, the same for the same places."""
    return (np.sin(world @ np.array([12.9898, 78.233, 37.719])) * 43758.5453) % 1 * 1800 - 900


class World:
    """A store of four patients, a working folder with what was made from it, and what evaluations keep."""

    def __init__(self, root: Path) -> None:
        self.root, self.source, self.path, self.work = root, root / "source", root / "store", root / "work"

    @property
    def store(self) -> VolumeStore:
        return VolumeStore.open(self.path)

    def fill(self) -> None:
        write_series(self.source / NAME, uid=UID, patient_id=NAME, shape=(16, 20, 20), hu=noise)
        write_series(self.source / f"{NAME}-short", uid=BROKEN, patient_id=NAME, shape=(3, 20, 20))
        for k in range(3):
            write_series(self.source / f"s{k}", uid=f"1.2.3.{k}", patient_id=f"P{k}", shape=(16 + k, 20, 20))
        self.ingest()
        self.volume = next(
            name
            for name in self.store.volume_ids()
            if self.store.commit_record(name).scan.scan == UID  # type: ignore[union-attr]
        )
        self.voxels = self.store.read_level(self.volume, 0).hu
        self.snapshot = newest(self.store)
        self.key = load_snapshot(self.snapshot).volumes[self.volume].patient_key
        self.make()

    def ingest(self, source: Path | None = None):
        return ingest(source or self.source, self.path, CONFIG, runner=Local(1))

    def make(self) -> None:
        """A split, a model trained on it, one warm-started from that, samples and a report: their files are stand-ins."""
        place = self.work / "split" / "k"
        Numbered(self.path / "roles" / "default", Roles).update(
            lambda old: Roles(
                roles={key: "train" if key == self.key or n else "val" for n, key in enumerate(sorted(self.patients()))}
            )
        )
        split(self.snapshot, SplitConfig(), place)
        self.split = self._commit(place, "split", {"snapshot": self.snapshot})
        data = {"snapshot": self.snapshot, "split": self.split}
        self.model = self._made("train-local", "checkpoint", data, {"model.safetensors": b"weights"})
        self.warm = self._made("train-global", "checkpoint", {"start": self.model}, {"model.safetensors": b"others"})
        self.samples = self._made("sample", "samples", {"checkpoint": self.warm}, {"samples.json": b"{}"})
        page = REPORT.format(volume=self.volume, picture="QUJD").encode()
        metrics = {
            "details": {"anatomy": {"real": {self.volume: {"figures": {}}, "other": 1}}},
            "warnings": [f"{UID} is odd"],
        }
        files = {"report.html": page, "metrics.json": json_text(metrics).encode(), "figures/real-0.png": b"PICTURE0"}
        files |= {"figures/generated-0.png": b"PICTURE1", "dataset-card.md": f"a\nScan {UID} is short\nb\n".encode()}
        self.report = self._made("evaluate", "report", data | {"samples": self.samples}, files)
        features = beside_store(self.path, ".features") / self.volume
        scratch = self.report.path / "work" / "features" / "real" / self.volume
        for folder in (features, scratch):
            folder.mkdir(parents=True)
            (folder / "f.safetensors").write_bytes(b"features")

    def patients(self) -> list[str]:
        return sorted({volume.patient_key for volume in load_snapshot(self.snapshot).volumes.values()})

    def _made(self, stage: str, kind: str, inputs: dict[str, Ref], files: dict[str, bytes]) -> Ref:
        place = self.work / stage / "k"
        for name, data in files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)
        return self._commit(place, kind, inputs, stage)

    def _commit(self, place: Path, kind: str, inputs: dict[str, Ref], stage: str = "split") -> Ref:
        (place / "work").mkdir(exist_ok=True)
        (place / "work" / "stage.lock").touch()
        return commit_artifact(place, kind, stage=stage, recipe=1, inputs=inputs, config={})  # type: ignore[arg-type]

    def places(self) -> Places:
        return Places(self.store, (self.work,), (), self.root / "inbox", self.root / "arrivals")

    def plan(self, key: str | None = None, text: str = "") -> Plan:
        patient = find_patient(self.store, key or self.key, CONFIG.key_file(self.path), text)
        return plan(patient, self.places(), None)

    def forget(self) -> dict:
        return forget(self.plan(text=NAME), self.places())

    def files_with(self, *words: bytes) -> set[str]:
        """Files, but those of the source, that have one of the words."""
        found = set()
        for root, _, names in os.walk(self.root):
            for name in names:
                path = Path(root) / name
                place = path.relative_to(self.root).as_posix()
                if not place.startswith("source/") and any(word in path.read_bytes() for word in words):
                    found.add(place)
        return found


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("filled"))
    world.fill()
    kept = world.root.with_name("kept")
    shutil.copytree(world.root, kept)
    yield world
    shutil.rmtree(kept)


@pytest.fixture
def world(filled: World) -> World:
    """As it was filled; at the same place, which references name."""
    shutil.rmtree(filled.root)
    shutil.copytree(filled.root.with_name("kept"), filled.root)
    return filled


def check_gone(world: World) -> None:
    """Nothing is left but the tombstone, and ids of volumes where they only say that something is gone."""
    grave = f"store/tombstones/{world.key}.json"
    assert world.files_with(NAME.encode(), UID.encode(), BROKEN.encode()) == set()
    assert world.files_with(world.key.encode()) == {grave}
    named = world.files_with(world.volume.encode())
    assert {place for place in named if not place.startswith(("store/snapshots/", "store/history/"))} == {
        grave,
        "work/split/k/split.json",
    }
    rows = [row.tobytes() for row in world.voxels.reshape(-1, world.voxels.shape[-1])]
    for volume_id in world.store.volume_ids():
        values = world.store.read_level(volume_id, 0).hu.tobytes()
        assert not any(row in values for row in rows if len(set(row)) > 8)
    assert not list((world.path / "volumes").glob(f"*{world.volume}*"))
    assert not (beside_store(world.path, ".features") / world.volume).exists()
    assert not (world.report.path / "work" / "features" / "real" / world.volume).exists()
    assert not (world.report.path / "figures" / "real-0.png").exists()
    assert (world.report.path / "figures" / "generated-0.png").read_bytes() == b"PICTURE1"
    assert verify_store(world.path, num_workers=1)[0] == []
    for ref in (world.split, world.model, world.warm, world.samples, world.report):
        verify_artifact(ref)
    marked = {
        ref.digest
        for ref in (world.split, world.model, world.warm, world.samples, world.report)
        if load_provenance(ref).forgotten
    }
    assert marked == {world.model.digest, world.warm.digest, world.samples.digest}


def test_a_plan_changes_nothing(world: World) -> None:
    before = world.files_with(b"")
    found = world.plan().to_json()
    assert found["volumes"] == [world.volume]
    assert found["num_scans"] == 2  # one is quarantined, and known by the cache of files
    assert {one["stage"]: one["how"] for one in found["affected"]} == {
        "split": "train",
        "train-local": "trained on it",
        "train-global": "made from a model that was",
        "sample": "made from a model that was",
        "evaluate": "made from a model that was",
    }
    assert set(found["refused"]) == {world.model.digest, world.warm.digest, world.samples.digest}
    assert world.files_with(b"") == before
    assert not (world.path / "tombstones").exists()


def test_nothing_is_left(world: World) -> None:
    done = world.forget()
    assert done["deleted_volumes"] == 1
    check_gone(world)
    others = load_snapshot(newest(world.store)).volumes
    assert len(others) == 3
    assert world.volume not in others
    newest_step = history(world.path).newest()
    assert newest_step is not None
    assert newest_step.change == "forgotten: 1 left out"
    metrics = (world.report.path / "metrics.json").read_text()
    assert '"other": 1' in metrics
    assert (world.report.path / "dataset-card.md").read_text() == "a\nb\n"
    grave = Tombstone.read(tombstone_path(world.path, world.key))
    assert grave.finished
    assert grave.scans == ()


def test_older_snapshots_say_so(world: World) -> None:
    world.forget()
    old = load_snapshot(world.snapshot)
    assert old.digest == world.snapshot.digest
    assert old.forgotten == (world.volume,)
    assert len(old.volumes) == 3
    with pytest.raises(ForgottenError, match="listed 1 volume"):
        open_snapshot(world.snapshot)
    path = world.path / "snapshots" / f"{world.snapshot.digest.removeprefix('sha256:')}.json"
    path.write_text(path.read_text().replace(": 1.0", ": 1.5", 1))
    found, _ = verify_store(world.path, num_workers=1)
    assert [finding.kind for finding in found] == ["snapshot"]  # a changed one is still noticed


def test_scans_do_not_come_back(world: World) -> None:
    world.forget()
    listed = newest(world.store).digest
    again = world.ingest()
    assert {entry.reason for entry in again.skipped} == {"forgotten"}
    assert {entry.series_uid for entry in again.skipped} == {UID, BROKEN}
    assert newest(world.store).digest == listed
    copies = world.root / "copies"
    write_series(
        copies / "a", uid="1.9.1", patient_id="", shape=(16, 20, 20), hu=noise
    )  # same pixels, no PatientID, another UID
    write_series(copies / "b", uid=UID, patient_id="", shape=(14, 20, 20))  # same UID, other pixels, no PatientID
    write_series(copies / "c", uid=UID + "2", patient_id=NAME, shape=(15, 20, 20))  # a new scan of the patient
    write_series(copies / "d", uid="1.9.4", patient_id="D", shape=(16, 20, 20), hu=noise)  # a pseudonym
    write_series(copies / "e", uid="1.9.5", patient_id="E", shape=(19, 20, 20))
    report = world.ingest(copies)
    assert [entry.series_uid for entry in report.committed] == ["1.9.5"]
    assert {(entry.series_uid, entry.reason) for entry in report.skipped} == {
        (uid, "forgotten") for uid in ("1.9.1", UID, UID + "2", "1.9.4")
    }
    assert len(world.store.volume_ids()) == 4
    assert verify_store(world.path, num_workers=1)[0] == []


def test_a_writer_that_was_slower_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The patient is forgotten between the look before a commit and the commit."""
    source = world.root / "late"
    write_series(source / "a", uid="1.9.9", patient_id=NAME, shape=(21, 20, 20))
    real = VolumeStore.write

    def write(self: VolumeStore, *args: object, **more: object) -> bool:
        world.forget()
        return real(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("tasks.ingest.scans.ingest_series", _ingest_series_with(write))
    report = world.ingest(source)
    assert [entry.reason for entry in report.skipped] == ["forgotten"]
    assert len(world.store.volume_ids()) == 3
    assert len(load_snapshot(newest(world.store)).volumes) == 3


def _ingest_series_with(write):
    from tasks.ingest.series import ingest_series

    def call(job):
        real, VolumeStore.write = VolumeStore.write, write
        try:
            return ingest_series(job)
        finally:
            VolumeStore.write = real

    return call


def test_killed_anywhere_it_goes_on(world: World) -> None:
    """kill -9 between lines, again and again on what the kill before left; then once to the end."""
    files = tuple(
        str(REPOSITORY / name)
        for name in ("tasks/patients/forget.py", "tasks/patients/places.py", "storage/tombstones.py")
    )
    killed = 0
    for number in (3, 40, 90, 140, 190, 240, 300, 370, 450, 540):
        killed += killed_at(number, files, world.forget) == -9
    assert killed >= 5
    assert forgotten(world.path).why(world.key) == "patient"
    world.forget()
    check_gone(world)


def test_a_held_volume_is_forgotten_too(world: World) -> None:
    """Committed, but never listed: known by the cache of files alone."""
    source = world.root / "held"
    write_series(source / "a", uid="1.2.826.77.9", patient_id=NAME, shape=(21, 20, 20))
    world.ingest(source)
    steps = history(world.path)
    last = steps.read(steps.numbers()[-1]).snapshot
    steps.path(steps.numbers()[-1]).unlink()
    (world.path / "snapshots" / f"{last.removeprefix('sha256:')}.json").unlink()
    assert len(world.plan().patient.volume_ids) == 2
    world.forget()
    assert len(world.store.volume_ids()) == 3


def test_who_nobody_knows(world: World) -> None:
    key_file = CONFIG.key_file(world.path)
    with pytest.raises(InputError, match="Nobody knows this patient"):
        find_patient(world.store, key_of("nobody", key_file, world.path), key_file)
    with pytest.raises(InputError, match="No snapshot"):
        key_of_volume(world.store, "0" * 32)
    with pytest.raises(InputError, match="empty"):
        key_of(" ", key_file, world.path)
    assert key_of(NAME, key_file, world.path) == world.key == key_of_volume(world.store, world.volume)
    assert find_patient(world.store, world.key[:8], key_file).key == world.key


def test_a_process_at_work_is_not_disturbed(world: World) -> None:
    from storage.documents.pending import Pending

    place = world.work / "train-local" / "other"
    Pending(stage="train-local", inputs={"snapshot": world.snapshot, "split": world.split}).save(place / "work")
    with locked(place / "work" / "stage.lock"):
        child = os.fork()
        if child == 0:
            os._exit(0 if _refused(world) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not (world.path / "tombstones").exists()
    world.forget()
    assert world.plan().unfinished == [place]


def test_an_unfinished_sampling_of_a_mask_is_emptied(world: World) -> None:
    from storage.documents.pending import Pending

    place = world.work / "sample" / "other"
    (place / "work").mkdir(parents=True)
    (place / "mask.nii.gz").write_bytes(b"x")
    other = Ref(kind="checkpoint", uri=str(world.root / "elsewhere"), digest="sha256:" + "1" * 64)
    Pending(stage="sample", inputs={"checkpoint": other}, config={"mask_volume": world.volume}).save(place / "work")
    assert world.plan().unfinished == [place]
    world.forget()
    assert not (place / "mask.nii.gz").exists()


def _refused(world: World) -> bool:
    try:
        world.forget()
    except LockedError as error:
        return "train-local/other" in str(error)
    return False


def test_an_interrupted_forgetting_is_named(world: World) -> None:
    add_tombstone(world.path, world.key, [world.volume], scans=[UID])
    found, _ = verify_store(world.path, num_workers=1)
    assert [finding.kind for finding in found] == ["forgotten"]
    assert f"--patient-key {world.key}" in found[0].message
    world.ingest()  # deletes what the tombstone names
    assert world.volume not in world.store.volume_ids()
    assert world.volume not in load_snapshot(newest(world.store)).volumes
    world.forget()
    check_gone(world)


def test_lineage_back_and_forward(world: World) -> None:
    known = Known(world.path, [world.work], made_in(world.work))
    found = of_artifacts([world.samples], known, "samples")
    assert [one.kind for one in found.back] == ["samples", "checkpoint", "checkpoint", "split", "snapshot"]
    assert world.volume in found.volumes["train"]
    assert sorted(found.volumes) == ["train", "val"]
    assert world.key in found.patients["train"]
    assert [(one.kind, how) for one, how in found.forward] == [("report", "samples")]
    ahead = of_volumes([world.volume], world.key, known, "volume").to_json()
    assert {one["digest"] for one in ahead["forward"] if one["kind"] == "checkpoint"} == {
        world.model.digest,
        world.warm.digest,
    }
    world.forget()
    known = Known(world.path, [world.work], made_in(world.work))
    after = of_artifacts([world.samples], known, "samples")
    assert after.forgotten == [world.volume]
    assert world.key in after.patients["train"]  # by the tombstone
    assert "a patient was forgotten on" in after.text()


def test_an_older_working_folder_loses_the_reference(world: World) -> None:
    from storage.documents.reference import Reference
    from tasks.retrain.reference import references

    kept = load_snapshot(world.snapshot).volumes
    first = Reference(
        volumes={name: volume.patient_key for name, volume in kept.items()},
        snapshot=world.snapshot.digest,
        num_noises=2,
        seed=1,
        why="the first",
        created="2026",
    )
    references(world.work).update(lambda old: first)
    assert world.forget()["references"] == [2]
    now = references(world.work).newest()
    assert now is not None
    assert now.volumes == {name: volume.patient_key for name, volume in kept.items() if name != world.volume}
    assert (now.snapshot, now.why) == (newest(world.store).digest, "a patient was forgotten")
    assert references(world.work).read(1).volumes == now.volumes  # the earlier number names patients, too
    check_gone(world)


def test_links_of_batches_are_removed_and_files_of_the_inbox_counted(world: World) -> None:
    inbox, batch = world.root / "inbox" / "a", world.root / "arrivals" / "batches" / "000001"
    write_series(inbox, uid="1.2.826.77.5", patient_id=NAME, shape=(5, 20, 20))
    write_series(inbox / "other", uid="1.2.3.5", patient_id="P5", shape=(5, 20, 20))
    batch.mkdir(parents=True)
    for number, path in enumerate(sorted(inbox.rglob("*.dcm"))):
        os.link(path, batch / f"{number}.dcm")
    secret = load_patient_key(CONFIG.key_file(world.path))
    found = plan(find_patient(world.store, world.key, CONFIG.key_file(world.path)), world.places(), secret)
    assert (found.arrivals.num_inbox, len(found.arrivals.links)) == (5, 5)
    assert forget(found, world.places())["links_removed"] == 5
    assert len(list(batch.iterdir())) == 5
    assert len(list(inbox.rglob("*.dcm"))) == 10


def test_by_what_a_scan_is_known(tmp_path: Path) -> None:
    add_tombstone(tmp_path, "a" * 32, ["v1"], scan_keys=["b" * 32], pixels=["p1", ""])
    add_tombstone(tmp_path, "a" * 32, ["v2"])  # a second scan: the first stays forgotten
    gone = forgotten(tmp_path)
    assert gone.why("a" * 32) == gone.why("x", "b" * 32) == "patient"
    assert gone.why("x", volume_id="v1") == gone.why("x", volume_id="v2") == gone.why("x", pixels="p1") == "pixels"
    assert gone.why("x", volume_id="v3", pixels="") == ""
    assert not forgotten(tmp_path / "none")
    tombstone_path(tmp_path, "a" * 32).write_text("{")
    with pytest.raises(StorageError, match="Restore it from a backup"):
        forgotten(tmp_path)
