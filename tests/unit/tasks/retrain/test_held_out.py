"""The frozen reference, and losses on it: the same numbers for the same volume, whatever else there is."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from prdit_models.families.family import HeldOut, Training
from storage.artifacts import Ref, load_provenance
from storage.documents.reference import Reference
from storage.errors import ComputationError
from storage.snapshots import load_snapshot, withdraw
from storage.volume_store import VolumeStore
from tasks.model.checkpoint import load_model
from tasks.model.compute import ComputeConfig
from tasks.retrain.evidence import why_losses_differ
from tasks.retrain.held_out import held_out_losses, noise_places
from tasks.retrain.policy import RetrainPolicy
from tasks.retrain.reference import frozen_reference, references
from tasks.train.data import ViewDataset
from tests.factories import list_volumes, make_split, make_store
from tests.unit.tasks.checkpoints import commit_checkpoint, tiny_model

CPU = ComputeConfig(device="cpu", num_threads=1)


@dataclass
class World:
    root: Path
    snapshot: Ref
    split: Ref
    checkpoint: Ref

    def losses(
        self, reference: Reference, number: int = 1, checkpoint: Ref | None = None, work: str = "work"
    ) -> dict[str, float]:
        return held_out_losses(
            checkpoint or self.checkpoint,
            reference,
            number,
            store=self.root / "store",
            workdir=self.root / work,
            compute=CPU,
        )

    def reference(self, *names: str, **changes: object) -> Reference:
        listed = load_snapshot(self.snapshot).volumes
        values = {
            "volumes": {name: listed[name].patient_key for name in names},
            "snapshot": self.snapshot.digest,
            "num_noises": 2,
            "seed": 1,
            "why": "",
            "created": "",
        }
        return Reference.model_validate(values | changes)


@pytest.fixture
def world(tmp_path: Path) -> World:
    snapshot = make_store(tmp_path / "store", num_volumes=6)
    split = make_split(tmp_path / "split", snapshot, ["v0", "v1", "v2"], ["v3", "v4", "v5"])
    checkpoint = commit_checkpoint(tmp_path / "global", "global", {"snapshot": snapshot, "split": split})
    return World(tmp_path, snapshot, split, checkpoint)


def test_a_volumes_loss_does_not_depend_on_the_others_and_is_found_again(world: World) -> None:
    alone = world.losses(world.reference("v4"), work="alone")
    together = world.losses(world.reference("v3", "v4", "v5"))
    assert together["v4"] == alone["v4"]
    assert len(set(together.values())) == 3
    [file] = (world.root / "work" / "held-out").glob("*/*.json")
    text, changed = file.read_text(), together | {"v4": 0.125}
    file.write_text(text.replace(str(together["v4"]), "0.125"))
    assert world.losses(world.reference("v3", "v4", "v5")) == changed  # taken from the file
    file.write_text(text[:40])
    assert world.losses(world.reference("v3", "v4", "v5")) == together  # damaged: measured again
    assert world.losses(world.reference("v3", "v4", "v5"), number=2) == together


def test_it_is_the_mean_of_the_familys_own_validation(world: World) -> None:
    reference = world.reference("v3")
    import torch

    module, info = load_model(world.checkpoint, "ema", torch.device("cpu"))
    data = ViewDataset(VolumeStore.open(world.root / "store"), ["v3"], info.view, info.window, 0, info.axes)
    places = noise_places("v3", reference)
    assert len(set(places)) == 2
    held_out = HeldOut(data.batch([0, 0]), places)
    training = Training(info.of_family.settings(), info.process)
    expected = info.of_family.validate(module, held_out, training, 2)["loss"]
    assert world.losses(reference)["v3"] == pytest.approx(expected, rel=1e-6)
    assert world.losses(world.reference("v3", seed=2), work="other")["v3"] != world.losses(reference)["v3"]


def test_a_worse_model_has_the_higher_loss_and_one_that_is_not_finite_is_refused(world: World) -> None:
    model = tiny_model()
    with_noise = tiny_model()
    for parameter in with_noise.parameters():
        parameter.mul_(3.0)
    inputs = {"snapshot": world.snapshot, "split": world.split}
    worse = commit_checkpoint(world.root / "worse", "global", inputs, model=with_noise)
    reference = world.reference("v3", "v4")
    old, new = world.losses(reference), world.losses(reference, checkpoint=worse)
    assert all(new[name] > old[name] for name in old)
    for parameter in model.parameters():
        parameter.fill_(1e30)
    broken = commit_checkpoint(world.root / "broken", "global", inputs, model=model)
    with pytest.raises(ComputationError, match="not finite on 1 of 1 volumes"):
        world.losses(world.reference("v3"), checkpoint=broken)


def test_losses_of_other_views_or_processes_do_not_compare(world: World) -> None:
    flow = {"name": "flow", "noise_std": 1.0, "num_steps": 1000, "prediction": "velocity"}
    inputs = {"snapshot": world.snapshot, "split": world.split}
    other = commit_checkpoint(world.root / "flow", "global", inputs, process=flow)
    assert why_losses_differ(world.checkpoint, world.checkpoint) == ""
    assert "process.name cosine and flow" in why_losses_differ(world.checkpoint, other)


def test_the_reference_stays_while_the_store_grows(world: World) -> None:
    policy = RetrainPolicy(min_reference_volumes=3)
    number, first = frozen_reference(world.root / "work", world.snapshot, world.split, policy)
    assert (number, sorted(first.volumes)) == (1, ["v3", "v4", "v5"])
    assert first.num_patients == 3
    later = make_split(world.root / "later", world.snapshot, ["v1"], ["v0", "v2", "v3", "v4", "v5"])
    assert frozen_reference(world.root / "work", world.snapshot, later, policy) == (1, first)


def test_too_small_a_reference_grows_until_it_is_large_enough(world: World) -> None:
    policy = RetrainPolicy(min_reference_volumes=4)
    work = world.root / "work"
    number, _ = frozen_reference(work, world.snapshot, world.split, policy)
    assert frozen_reference(work, world.snapshot, world.split, policy)[0] == number == 1
    later = make_split(world.root / "later", world.snapshot, ["v1"], ["v0", "v3", "v4", "v5"])
    number, grown = frozen_reference(work, world.snapshot, later, policy)
    assert (number, sorted(grown.volumes)) == (2, ["v0", "v3", "v4", "v5"])
    assert "more volumes are held out" in grown.why
    last = make_split(world.root / "last", world.snapshot, ["v1"], ["v0", "v2", "v3", "v4", "v5"])
    assert frozen_reference(work, world.snapshot, last, policy) == (2, grown)


def test_volumes_of_a_forgotten_patient_make_a_new_number(world: World) -> None:
    policy, work = RetrainPolicy(min_reference_volumes=2), world.root / "work"
    frozen_reference(work, world.snapshot, world.split, policy)
    store = VolumeStore.open(world.root / "store")
    store.record_path("v5").unlink()
    rest = list_volumes(store, {"v0": "p0"})
    number, left = frozen_reference(work, rest, world.split, policy)
    assert (number, sorted(left.volumes)) == (2, ["v3", "v4"])
    assert "1 volume(s) are not in the store any more" in left.why
    assert references(work).numbers() == [1, 2]


def test_another_number_of_noises_makes_a_new_number_of_the_same_volumes(world: World) -> None:
    work = world.root / "work"
    _, first = frozen_reference(work, world.snapshot, world.split, RetrainPolicy(min_reference_volumes=2))
    more = RetrainPolicy(min_reference_volumes=2, num_noises=5)
    number, second = frozen_reference(work, world.snapshot, world.split, more)
    assert (number, second.volumes, second.num_noises) == (2, first.volumes, 5)


def test_with_another_split_no_training_volume_stays_in_it(world: World) -> None:
    policy, work = RetrainPolicy(min_reference_volumes=2), world.root / "work"
    frozen_reference(work, world.snapshot, world.split, policy)
    other = make_split(world.root / "other", world.snapshot, ["v3", "v4", "v5"], ["v0", "v1", "v2"])
    number, left = frozen_reference(work, world.snapshot, other, policy)
    assert (number, sorted(left.volumes)) == (2, ["v0", "v1", "v2"])
    assert "3 volume(s) are not listed any more, or not held out" in left.why
    assert frozen_reference(work, world.snapshot, other, policy) == (2, left)


def test_what_the_champion_was_trained_on_is_never_in_it(world: World) -> None:
    policy, work = RetrainPolicy(min_reference_volumes=2), world.root / "work"
    other = make_split(world.root / "other", world.snapshot, ["v1", "v5"], ["v0", "v2", "v3", "v4"])
    assert load_provenance(world.checkpoint).inputs["split"] == world.split  # it was trained on v0, v1 and v2
    _, first = frozen_reference(work, world.snapshot, other, policy, world.checkpoint)
    assert sorted(first.volumes) == ["v3", "v4"]
    all_trained = make_split(world.root / "third", world.snapshot, ["v3", "v4", "v5"], ["v0", "v1", "v2"])
    number, none = frozen_reference(work, world.snapshot, all_trained, policy, world.checkpoint)
    assert (number, none.volumes) == (2, {})


def test_a_withdrawn_volume_leaves_it(world: World) -> None:
    policy, work = RetrainPolicy(min_reference_volumes=2), world.root / "work"
    frozen_reference(work, world.snapshot, world.split, policy)
    left = withdraw(VolumeStore.open(world.root / "store"), ["v4"])
    split = make_split(world.root / "later", left, ["v0", "v1", "v2"], ["v3", "v5"])
    number, reference = frozen_reference(work, left, split, policy)
    assert (number, sorted(reference.volumes), reference.snapshot) == (2, ["v3", "v5"], left.digest)
