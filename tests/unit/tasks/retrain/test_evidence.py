"""What is gathered of champion and challenger: their reports, shares, losses, and what is missing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage.artifacts import Ref
from storage.documents.reference import Reference
from storage.documents.samples import Samples
from storage.snapshots import load_snapshot
from tasks.model.compute import ComputeConfig
from tasks.retrain.evidence import Candidate, Measuring, gather, report_of
from tasks.retrain.policy import RetrainPolicy
from tests.unit.tasks.checkpoints import commit_checkpoint, tiny_model
from tests.unit.tasks.compared_runs import World, figure

POLICY = RetrainPolicy()


def report(world: World, samples: Ref, failed: int, copies: int, **changes: Any) -> Ref:
    """A report in which the first samples fail the anatomy, or are copies."""
    ids = Samples.load(samples.path).volume_ids
    details = {
        "anatomy": {
            "generated": {name: {"failed": ["lung"] if place < failed else []} for place, name in enumerate(ids)}
        },
        "memorisation": {
            "threshold_hu": 50.0,
            "distances_hu": {"generated": [10.0 if place < copies else 90.0 for place in range(len(ids))]},
        },
    }
    figures = {"fid": figure(1.0 + failed)}
    return world.report(samples, figures, details=details | changes.pop("details", {}), **changes)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def other(world: World) -> Ref:
    model = tiny_model()
    for parameter in model.parameters():
        parameter.mul_(3.0)
    inputs = {"snapshot": world.made["snapshot"], "split": world.made["split"]}
    return commit_checkpoint(world.root / "other", "global", inputs, model=model)


def measuring(world: World) -> Measuring:
    listed = load_snapshot(world.made["snapshot"]).volumes
    reference = Reference(
        volumes={name: listed[name].patient_key for name in ("v3", "v4")},
        snapshot=world.made["snapshot"].digest,
        num_noises=1,
        seed=1,
        why="",
        created="",
    )
    compute = ComputeConfig(device="cpu", num_threads=1)
    return Measuring(reference, 1, store=world.root / "store", workdir=world.work, compute=compute)


def test_everything_beside_each_other(world: World, other: Ref) -> None:
    champion = Candidate(world.made["checkpoint"], report(world, world.samples(), 1, 0), 3, 1)
    challenger = Candidate(other, report(world, world.samples(checkpoint=other), 4, 2), 4, 2)
    found = gather(challenger, champion, measuring(world), POLICY)
    assert found.champion == 1
    assert found.losses is not None
    assert found.loss is not None
    assert found.loss["value"] == pytest.approx(found.losses[1] - found.losses[0])
    assert found.loss["value"] > 0  # three times the weights
    assert (found.loss["num_patients"], found.reference_volumes, found.patients) == (2, 2, (3, 4))
    assert (found.anatomy.value, found.copies.value) == (0.0, 0.5)
    assert found.anatomy.difference is not None
    assert found.copies.difference is not None
    assert found.anatomy.difference["value"] == pytest.approx(-0.75)
    assert found.copies.difference["value"] == pytest.approx(0.5)
    assert found.distances == ()
    assert found.why_no_distances


def test_without_a_champion_its_own_shares_count(world: World) -> None:
    alone = Candidate(world.made["checkpoint"], report(world, world.samples(), 1, 2), 3, 1)
    found = gather(alone, None, measuring(world), POLICY)
    assert (found.champion, found.loss, found.anatomy.difference) == (None, None, None)
    assert (found.anatomy.value, found.copies.value) == (0.75, 0.5)
    assert not (world.work / "held-out").exists()  # nothing is measured that nothing needs


def test_what_was_not_measured_is_said(world: World, other: Ref) -> None:
    left_out = {"anatomy": {"left_out": "no chest"}, "memorisation": {"left_out": "not trained", "closest": []}}
    champion = Candidate(world.made["checkpoint"], None, None, 1)
    challenger = Candidate(other, report(world, world.samples(checkpoint=other), 0, 0, details=left_out), None, 2)
    found = gather(challenger, champion, measuring(world), POLICY)
    assert (found.anatomy.value, found.copies.value) == (None, None)
    assert "whole chest" in found.anatomy.note
    assert "memorisation" in found.copies.note
    assert "not there any more" in found.why_no_distances


def test_of_another_process_only_the_reports_compare(world: World) -> None:
    flow = {"name": "flow", "noise_std": 1.0, "num_steps": 1000, "prediction": "velocity"}
    inputs = {"snapshot": world.made["snapshot"], "split": world.made["split"]}
    other = commit_checkpoint(world.root / "flow", "global", inputs, process=flow)
    champion = Candidate(world.made["checkpoint"], None, None, 1)
    found = gather(Candidate(other, None, None, 2), champion, measuring(world), POLICY)
    assert found.loss is None
    assert "process.name cosine and flow" in found.why_no_loss


def test_losses_on_an_empty_reference_do_not_compare(world: World, other: Ref) -> None:
    on = measuring(world)
    empty = replace(on, reference=on.reference.model_copy(update={"volumes": {}}))
    champion = Candidate(world.made["checkpoint"], None, None, 1)
    found = gather(Candidate(other, None, None, 2), champion, empty, POLICY)
    assert (found.loss, found.losses, found.reference_volumes) == (None, None, 0)
    assert "the reference has no volume" in found.why_no_loss


def test_the_newest_report_of_a_checkpoint_that_compares_is_found(world: World, other: Ref) -> None:
    assert report_of(world.work, world.made["checkpoint"]) is None
    mine = report(world, world.samples(), 0, 0)
    report(world, world.samples(checkpoint=other), 0, 0)
    finer = report(world, world.samples(seed=2), 0, 0, volume_size=16)
    from storage.documents.report import Report

    assert report_of(world.work, world.made["checkpoint"], Report.load(mine.path)) == mine
    assert report_of(world.work, world.made["checkpoint"], Report.load(finer.path)) == finer
    (mine.path / "provenance.json").write_text("{")
    assert report_of(world.work, world.made["checkpoint"]) == finer
