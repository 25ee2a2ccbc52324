"""Comparison of runs: what a name means, pairs, differences, settings, the page, what MLflow gets."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from prdit_models.metrics.distances import FeatureDistance
from prdit_models.metrics.extractors.extractor import Extractor, Input, key_of
from prdit_models.metrics.paired import share_difference
from storage.artifacts import Ref
from storage.documents.comparison import Comparison, Difference
from storage.errors import DamagedArtifactError, InputError
from storage.volume_store import VolumeStore
from tasks.compare import curves, differences
from tasks.compare.differences import compare, pairs_of
from tasks.compare.features import features_of
from tasks.compare.output import folder_name, write
from tasks.compare.page import figure_words, mlflow_link
from tasks.compare.runs import Run, find, label_of, load
from tasks.evaluate import features as features_module
from tasks.evaluate.config import EvaluateConfig
from tests.factories import make_split
from tests.unit.tasks.checkpoints import commit_checkpoint, tiny_model
from tests.unit.tasks.compared_runs import DIGEST, World, figure, made_up_features
from tests.unit.tasks.html_tags import Tags

HOSTILE = '<script>alert("1")</script>'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def other(world: World) -> Ref:
    """Another checkpoint of the same data."""
    inputs = {"snapshot": world.made["snapshot"], "split": world.made["split"]}
    return commit_checkpoint(world.root / "other", "global", inputs, model=tiny_model(3))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two volumes are enough for an interval."""
    monkeypatch.setattr(FeatureDistance, "min_for_interval", lambda *_: 2)


def loaded(*refs: Ref, workdir: Path) -> list[Run]:
    return load([find(ref.model_dump_json(), workdir) for ref in refs], "")


def features(run: Run, side: str, names: Sequence[str]) -> np.ndarray:
    return made_up_features(run.samples_ref.digest if side == "generated" else "real", list(names))


def silent(done: int, total: int) -> None:
    pass


def test_every_name_of_a_run_means_its_report(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(world.root / "names")
    one = world.report(world.samples(), {"fid": figure(1.0)}, mlflow_run_id="e" * 32)
    two = world.report(world.samples(seed=2), {"fid": figure(2.0)}, mlflow_run_id="d" * 32)
    folder = world.run("20260101T000000.000000Z", one, mlflow_run_id="a" * 32, stage_run_id="b" * 32)
    for text in (
        *("20260101T000000.000000Z", str(folder), "latest", "a" * 32, "b" * 32, one.uri, one.path.name),
        one.model_dump_json(),
    ):
        found = find(text, world.work)
        assert (found.name, found.ref) == ("20260101T000000.000000Z", one), text
        assert found.record is not None
    for text in (two.uri, two.path.name, "d" * 32):  # made by `prdit evaluate`: no run of the pipeline has it
        assert (find(text, world.work).name, find(text, world.work).ref) == (two.path.name, two)
    monkeypatch.chdir(world.work / "runs")
    assert find("20260101T000000.000000Z", Path("elsewhere")).ref == one
    assert load([find(one.uri, world.work), find(two.uri, world.work)], "http://m")[1].mlflow_uri == "http://m"


def test_what_is_no_run_is_refused_with_what_there_is(world: World) -> None:
    world = World(world.root / "refused")
    samples = world.samples()
    one = world.report(samples, {"fid": figure(1.0)})
    world.run("20260101T000000.000000Z", one)
    world.run("20260102T000000.000000Z", None)
    with pytest.raises(InputError, match=r"'nothing' is no run: .*20260102T000000\.000000Z, 20260101T000000"):
        find("nothing", world.work)
    with pytest.raises(InputError, match="There are no runs in elsewhere; name it: --workdir"):
        find("nothing", Path("elsewhere"))
    with pytest.raises(InputError, match="has no report: it ended with InputError: no scans"):
        find("latest", world.work)
    with pytest.raises(InputError, match=r"needs runs or reports, got a samples at .*prdit evaluate"):
        find(samples.uri, world.work)
    with pytest.raises(InputError, match="is not a reference"):
        find("{}", world.work)
    found = find(one.uri, world.work)
    with pytest.raises(InputError, match="two runs or more"):
        load([found], "")
    with pytest.raises(InputError, match="have the same report"):
        load([found, found], "")
    (one.path / "metrics.json").write_text((one.path / "metrics.json").read_text() + " ")
    two = world.report(samples, {"fid": figure(2.0)})
    with pytest.raises(DamagedArtifactError, match="changed after it was committed"):
        load([found, find(two.uri, world.work)], "")
    assert [label_of(place) for place in (0, 1, 25, 26)] == ["A", "B", "Z", "A1"]


@pytest.mark.usefixtures("few")
def test_differences_are_taken_of_equal_seeds_and_shared_real_volumes(
    world: World, other: Ref, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make_split(world.root / "split-2", world.made["snapshot"], ["v1", "v2"], ["v3", "v4"])
    on_features = {"features": DIGEST}
    one = world.report(world.samples(4), {"fid": figure(5.0, **on_features), "fid_val": figure(6.0, **on_features)})
    two = world.report(
        world.samples(3, checkpoint=other),
        {"fid": figure(4.5, **on_features), "fid_val": figure(6.5, **on_features)},
        split=split,
    )
    asked: dict[str, tuple[np.ndarray, ...]] = {}

    def interval(
        name: str, real: np.ndarray, a: np.ndarray, b: np.ndarray, seed: int, settings: object
    ) -> dict[str, Any]:
        asked[name] = (real, a, b)
        return {"value": -2.0, "low": -3.0, "high": -1.0, "level": 0.95, "num_draws": 9, "method": "made up"}

    monkeypatch.setattr(differences, "paired_interval", interval)
    runs = loaded(one, two, workdir=world.work)
    pairs = pairs_of(*runs)
    names = [f"generated-0000{k}" for k in range(3)]
    assert (pairs.generated, pairs.by) == ([(name, name) for name in names], "seed")
    assert (pairs.real, pairs.held_out) == (["v1", "v2", "v3", "v4"], ["v3", "v4"])
    seen: list[tuple[int, int]] = []
    found = compare(runs, features, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    for name, real in (("fid", pairs.real), ("fid_val", pairs.held_out)):
        for given, expected in zip(
            asked[name],
            (
                made_up_features("real", real),
                made_up_features(runs[0].samples_ref.digest, names),
                made_up_features(runs[1].samples_ref.digest, names),
            ),
            strict=True,
        ):
            assert np.array_equal(given, expected)
    fid, fid_val = found.figures
    assert fid.values["A"].value == 5.0
    assert fid.differences[0].model_dump() == {
        "label": "B",
        "value": -2.0,
        "interval": {"low": -3.0, "high": -1.0, "level": 0.95, "num_draws": 9, "method": "made up"},
        "better": True,
        "note": "Of the 3 volumes of equal seeds and the 4 real volumes that both have.",
    }
    assert fid_val.differences[0].note == "Of the 3 volumes of equal seeds."
    notes = " ".join(found.notes)
    assert "A and B have 4 and 3 generated volumes" in notes
    assert "A and B were measured on different real volumes (5 and 5, 4 of them the same)" in notes
    assert "share no seed" not in notes


@pytest.mark.usefixtures("few")
def test_without_equal_seeds_all_volumes_are_compared_and_it_is_said(world: World) -> None:
    one, two = (
        world.report(world.samples(4, seed=seed), {"fid": figure(float(seed), features=DIGEST)}) for seed in (1, 2)
    )
    runs = loaded(one, two, workdir=world.work)
    assert pairs_of(*runs).by == "index"
    found = compare(runs, lambda *_: None, silent)  # features that are gone
    assert any("A and B share no seed" in note for note in found.notes)
    (difference,) = found.figures[0].differences
    assert (difference.value, difference.interval, difference.better) == (1.0, None, None)
    assert "cannot be computed again" in difference.note


@pytest.mark.parametrize(
    ("better", "low", "high", "blind", "expected"),
    [
        ("lower", -2.0, -1.0, False, True),
        ("lower", 1.0, 2.0, False, False),
        ("higher", 1.0, 2.0, False, True),
        ("higher", -2.0, -1.0, False, False),
        ("lower", -1.0, 1.0, False, None),
        ("", -2.0, -1.0, False, None),
        ("lower", -2.0, -1.0, True, None),
    ],
)
@pytest.mark.usefixtures("few")
def test_better_is_said_only_where_the_interval_excludes_0_and_the_figure_is_not_blind(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    better: str,
    low: float,
    high: float,
    blind: bool,
    expected: bool | None,
) -> None:
    name = {"lower": "fid", "higher": "precision", "": "fid_val"}[better]
    monkeypatch.setattr(differences, "about_figures", lambda: {name: ("fid", differences.About(name, better))})
    monkeypatch.setattr(
        differences,
        "paired_interval",
        lambda *_, seed, settings: {"value": 0.5, "low": low, "high": high, "method": "made up"},
    )
    refs = [
        world.report(
            world.samples(4),
            {name: figure(value, features=DIGEST)},
            blind={name: "Blind here."} if blind else {},
        )
        for value in (1.0, 2.0)
    ]
    found = compare(loaded(*refs, workdir=world.work), features, silent)
    assert found.figures[0].differences[0].better is expected
    assert found.figures[0].better == better
    words = {True: "better", False: "worse", None: "no clear difference" if low < 0 < high else "differs"}[expected]
    assert figure_words(found.figures[0].differences[0]).endswith(f") {words}")


def test_the_share_of_chests_has_a_paired_interval(world: World) -> None:
    names = [f"generated-0000{k}" for k in range(4)]

    def one(failed: Sequence[int]) -> Ref:
        seen = {name: {"failed": ["body"] if place in failed else []} for place, name in enumerate(names)}
        share = 1 - len(failed) / 4
        return world.report(
            world.samples(4),
            {"anatomy_pass_share": figure(share), "hu_mean_generated": figure(-600.0 + share, unit="HU")},
            details={"anatomy": {"generated": seen}},
        )

    found = compare(loaded(one([0, 1]), one([0]), workdir=world.work), features, silent)
    (share,), (mean,) = (row.differences for row in found.figures)
    expected = share_difference([False, False, True, True], [False, True, True, True], paired=True)
    assert (share.value, share.note) == (expected.pop("value"), "")
    assert share.interval == expected
    assert (mean.value, mean.interval, mean.note) == (pytest.approx(0.25), None, "")


def test_settings_that_differ_are_listed_by_stage_and_equal_ones_are_not(world: World, other: Ref) -> None:
    inputs = {"snapshot": world.made["snapshot"], "split": world.made["split"]}
    longer = commit_checkpoint(world.root / "longer", "refiner", inputs, model=tiny_model(4))
    one = world.report(
        world.samples(4),
        {"fid": figure(1.0)},
        config={"seed": 0, "metrics": {"ms_ssim": {"num_pairs": 5}, "hu": {}, "fid": {}}},
    )
    two = world.report(
        world.samples(4, seed=5),
        {"fid": figure(2.0)},
        config={"seed": 1, "deep": {"a": None}, "metrics": {"ms_ssim": {"num_pairs": 9}, "fid": {}}},
    )
    three = world.report(
        world.samples(4, checkpoint=longer), {"fid": figure(3.0)}, config={"seed": 0, "metrics": {"fid": {}}}
    )
    found = compare(loaded(one, two, three, workdir=world.work), features, silent)
    rows = {(row.stage, row.key): row.values for row in found.settings}
    assert rows["sample", "seed"] == {"A": 1, "B": 5, "C": 1}
    assert rows["evaluate", "seed"] == {"A": 0, "B": 1, "C": 0}
    assert rows["evaluate", "deep.a"] == {"B": None}
    assert rows["evaluate", "metrics.hu"] == {"A": {}}  # measured, without settings; left out by the others
    assert ("evaluate", "metrics.fid") not in rows
    assert rows["train-global", "lr"] == {"A": 0.001, "B": 0.001}
    assert rows["train-refiner", "lr"] == {"C": 0.001}
    assert ("sample", "num_steps") not in rows
    assert ("snapshot", "digest") not in rows
    assert found.notes[-1] == "Settings of metrics differ (ms_ssim): figures of these do not mean the same."
    stages = list(dict.fromkeys(stage for stage, _ in rows))
    assert stages[-2:] == ["sample", "evaluate"]
    assert [pairs.label for pairs in found.pairs] == ["B", "C"]


@pytest.mark.usefixtures("few")
def test_the_page_has_everything_fetches_nothing_and_escapes(
    world: World, other: Ref, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        differences,
        "paired_interval",
        lambda *_, seed, settings: {"value": -1.25, "low": -2.0, "high": -0.5, "level": 0.95, "method": "made up"},
    )
    one = world.report(
        world.samples(4),
        {"fid": figure(31.25, features=DIGEST), HOSTILE: figure(2.0), "hu_mean_real": figure(-650.5, unit="HU")},
        warnings=[HOSTILE],
        references={"floor": {"fid": figure(7.125, n_generated=2)}},
        config={"note": HOSTILE},
    )
    two = world.report(
        world.samples(4, checkpoint=other),
        {"fid": figure(30.0, features=DIGEST), HOSTILE: figure(3.0), "hu_mean_real": figure(-650.5, unit="HU")},
    )
    runs = loaded(one, two, workdir=world.work)
    found = compare(runs, features, silent)
    page_path = write(found, runs, tmp_path / "out", f"prdit compare {HOSTILE}")
    assert Comparison.load(tmp_path / "out") == found
    raw = page_path.read_text()
    page = Tags(raw)
    for words in (
        "31.25",
        "30.00",
        "−1.250",
        "−2.000 to −0.5000",
        "better",
        "7.125",
        "n = 5, 2",
        DIGEST,
        one.digest,
        two.digest,
    ):
        assert words in page.text, words
    assert "Mean, real (−650.5 HU)" in page.text  # equal in all runs
    assert page.text.count(HOSTILE) == 4  # a figure, a warning, a setting, the command
    assert raw.count("<script") == 1
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1 + 2 * 4 * 6  # curves; planes and windows of the volumes of four seeds, of both runs
    assert [source.split(";")[0] for source in images] == ["data:image/png", *["data:image/webp"] * 48]
    assert len([1 for tag, attributes in page.tags if attributes.get("type") == "range"]) == 4 + 1
    script = raw[raw.index("<script>") + len("<script>") : raw.index("</script>")]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in raw  # what the page's policy allows
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert (attributes.get("href") or "#").startswith("#")  # not in MLflow
    assert str(world.root) not in raw
    assert str(world.root) not in (tmp_path / "out" / "comparison.json").read_text()
    assert folder_name(runs) != folder_name(runs[::-1])


def test_curves_of_what_the_reports_have(world: World, other: Ref) -> None:
    hu = {"edges_hu": [-1000, 0, 1000], "share_real": [0.75, 0.25], "share_generated": [1.0, 0.0]}
    one = world.report(world.samples(4), {"fid": figure(21.0)}, details={"hu": hu})
    sides = {"real": {"mean_db": [3.0, 1.0]}, "generated": {"mean_db": [2.0, 0.0]}}
    details = {"spectrum": {"frequency_per_mm": [0.1, 0.2], **sides}}
    two = world.report(world.samples(4, checkpoint=other), {"fid": figure(22.0)}, details=details)
    runs = loaded(one, two, workdir=world.work)
    losses, histograms, spectra = curves._losses(runs), curves._histograms(runs), curves._spectra(runs)
    assert losses is not None
    assert [(label, list(x), list(y)) for label, _, x, y in losses[0]] == [("A", [2.0], [0.7])]  # B's wrote none
    assert histograms is not None
    assert [(label, list(x), y) for label, _, x, y in histograms[0]] == [
        ("real", [-500.0, 500.0], [0.75, 0.25]),
        ("A", [-500.0, 500.0], [1.0, None]),  # a logarithmic axis
    ]
    assert spectra is not None
    assert [(label, color, y) for label, color, _, y in spectra[0]] == [
        ("real", curves.INK, [3.0, 1.0]),
        ("B", curves.COLORS[1], [2.0, 0.0]),
    ]
    assert (curves.draw_curves(runs) or b"").startswith(b"\x89PNG")
    assert curves.draw_curves(loaded(two, one, workdir=world.work)[:0]) is None


def test_a_link_only_where_mlflow_has_pages(world: World) -> None:
    one = world.report(world.samples(4), {"fid": figure(8.0)})
    world.run("20260103T000000.000000Z", one, mlflow_run_id="a" * 32)
    two = world.report(world.samples(4), {"fid": figure(9.0)})
    run = loaded(one, two, workdir=world.work)[0]
    assert mlflow_link(run) == ""  # a local file
    served = Run(**vars(run) | {"mlflow_uri": "http://127.0.0.1:5000/"})
    assert mlflow_link(served) == f"http://127.0.0.1:5000/#/experiments/1/runs/{'a' * 32}?workflowType=machine_learning"


def test_the_command_refuses_other_features_and_says_what_it_wrote(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = world.report(world.samples(4), {"fid": figure(1.0)})
    two = world.report(world.samples(4), {"fid": figure(2.0)}, warnings=["The samples are selected."])
    foreign = world.report(world.samples(4), {"fid": figure(2.0)}, features={"digest": "sha256:" + "2" * 64})

    def call(*words: str) -> Any:
        return CliRunner().invoke(
            app, ["compare", *words, "--workdir", str(world.work), "--output", str(tmp_path / "out")]
        )

    refused = call(one.uri, foreign.uri)
    assert refused.exit_code == 1
    assert "cannot be compared" in refused.stderr
    assert not (tmp_path / "out").exists()
    done = call(one.uri, two.path.name)
    assert done.exit_code == 0, done.stderr
    assert "+1.000" in done.stdout
    assert "B: The samples are selected." in done.stdout
    assert "No setting, no code version and no data differ." in done.stdout
    assert done.stdout.splitlines()[-1] == f"page: {tmp_path / 'out' / 'compare.html'}"
    assert f"run {one.path.name} is not in MLflow" in caplog.text


def test_a_difference_without_interval_is_a_plain_number() -> None:
    plain = Difference(label="B", value=-0.5, interval=None, better=None, note="")
    assert figure_words(plain) == "−0.5000"
    assert figure_words(plain.model_copy(update={"value": None})) == "–"


def test_features_are_those_of_the_evaluation_and_computed_again_where_they_are_gone(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = EvaluateConfig(extractor="random").extractor
    network = Extractor(
        name="random",
        title="Mean and spread",
        weights="none",
        width=2,
        statement="for this test",
        network=lambda x: torch.stack([x.mean(dim=(1, 2, 3, 4)), x.std(dim=(1, 2, 3, 4))], 1),
        input=Input(),
    )
    monkeypatch.setattr(features_module, "_extractors", {settings: network})
    refs = [
        world.report(
            world.samples(4),
            {"fid": figure(value, features=network.digest)},
            features={"digest": network.digest, "width": 2},
            config={"extractor": key_of(settings)},
        )
        for value in (1.0, 2.0)
    ]
    run = loaded(*refs, workdir=world.work)[0]
    made = features_of(run, "generated", run.samples.volume_ids)
    store = VolumeStore.open(run.samples_ref.path / run.samples.store)
    hu = np.stack([store.read_level(name).hu.astype(np.float32) for name in run.samples.volume_ids])
    seen = np.clip(hu, -1000, 1000) / 1000
    expected = np.stack([seen.mean(axis=(1, 2, 3)), seen.std(axis=(1, 2, 3), ddof=1)], 1)
    assert made == pytest.approx(expected, abs=1e-5)
    real = features_of(run, "real", ["v4", "v0"])
    view = np.clip(VolumeStore.open(run.snapshot.path).read_view("v4", 8, 16), -1000, 1000) / 1000
    assert real is not None
    assert real[0] == pytest.approx([view.mean(), view.std(ddof=1)], abs=1e-5)
    monkeypatch.setattr(features_module, "_extractors", {settings: replace(network, weights="other")})
    assert np.array_equal(features_of(run, "generated", run.samples.volume_ids), made)  # kept beside the volumes
    assert features_of(run, "real", ["v1"]) is None  # not kept, and the network is another one
    assert "its feature network is not here" in caplog.text
    assert features_of(run, "real", ["gone"]) is None
