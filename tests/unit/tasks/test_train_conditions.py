"""Conditions of a training: how numbers, categories and grids are encoded, recorded, shown, and asked for in samples."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from prdit_models.conditions import Conditions
from prdit_models.families.family import Batch
from storage.artifacts import Ref
from storage.checkpoints import load_tensors
from storage.documents.checkpoint import Category, Checkpoint, Number
from storage.documents.samples import Samples
from storage.documents.snapshot import Snapshot, SnapshotVolume
from storage.documents.volume import Grid
from storage.errors import InputError
from storage.files import read_json
from storage.geometry import Volume
from storage.snapshots import load_snapshot
from storage.volume_store import VolumeStore
from tasks.evaluate.sources import Sources
from tasks.model.checkpoint import CheckpointInfo, load_info
from tasks.model.conditions import check_asked, encoded, width
from tasks.model.view import ViewConfig
from tasks.reconstruct.config import ReconstructConfig
from tasks.reconstruct.measure import StoredVolume, load_measurement, measure_stage
from tasks.reconstruct.run import reconstruct
from tasks.reconstruct.setting import Setting
from tasks.run.stage import RunContext
from tasks.sample import run as stage
from tasks.sample.config import SampleConfig
from tasks.train.__main__ import _commit
from tasks.train.augmentation import Augmentation, Change
from tasks.train.check import check_training
from tasks.train.conditions import conditions_of, measured, nearly_numbers
from tasks.train.config import TrainingConfig
from tasks.train.loader import Loader, Order
from tasks.train.loop import Stopped, Training
from tasks.train.setup import assemble
from tasks.train.spec import TrainSpec
from tests.factories import global_config, list_volumes, local_config, make_split, train_spec, trained
from tests.unit.tasks.loader_data import SHAPES, dataset, write_store

GRID = Grid(spacing_mm=2.0, num_levels=1, interpolation="linear")
ONE_EDGE, TWO_EDGES = ViewConfig(size=8, edge=8), ViewConfig(size=8, edge=8, more_edges=(16,))
NAMES = ("voxel_mm", "age_years", "PatientSex")


def listed(**columns: list[Any]) -> Snapshot:
    """A snapshot of volumes v0, v1, … with attributes; None: it has none. Each is 10 voxels longer than the one before."""
    count = max(map(len, columns.values()))
    entries = {}
    for index in range(count):
        known = {name: values[index] for name, values in columns.items() if values[index] is not None}
        text = {name: value for name, value in known.items() if name.startswith("label")}
        entries[f"v{index}"] = SnapshotVolume(
            patient_key=f"p{index}",
            patient_known=True,
            shape=(100 + 10 * index, 180, 200),
            attributes={name: value for name, value in known.items() if name not in text},
            labels=text,
        )
    return Snapshot(grid=GRID, volumes=entries)


def ids(count: int) -> list[str]:
    return [f"v{index}" for index in range(count)]


# -- encoding ---------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_training_volumes_that_have_a_value() -> None:
    snapshot = listed(age_years=[40.0, 60.0, None, 95.0], PatientSex=["M", "F", None, "O"])
    age, sex = measured(snapshot, ("age_years", "PatientSex"), ids(3), ONE_EDGE)
    assert age == Number(name="age_years", mean=50.0, std=10.0)
    assert sex == Category(name="PatientSex", values=("F", "M"))
    assert width((age, sex)) == 4
    rows = [dict(volume.columns) for volume in snapshot.volumes.values()]
    assert [encoded((age, sex), row) for row in rows] == [
        [-1.0, 1.0, 0.0, 1.0],
        [1.0, 1.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],  # nothing known
        [4.5, 1.0, 0.0, 0.0],  # a sex that no training volume had
    ]
    assert "40" not in str(age.model_dump())  # neither the youngest nor the oldest patient's age is recorded
    assert age.range == (20.0, 80.0)


def test_a_column_of_numbers_is_a_number_and_any_other_a_category() -> None:
    snapshot = listed(label_grade=["1", "3", None], label_stage=["1", "II", "1"], contrast=[True, False, True])
    grade, dose, contrast = measured(snapshot, ("label_grade", "label_stage", "contrast"), ids(3), ONE_EDGE)
    assert grade == Number(name="label_grade", mean=2.0, std=1.0)
    assert dose == Category(name="label_stage", values=("1", "II"))
    assert contrast == Category(name="contrast", values=("False", "True"))
    assert encoded((contrast,), {"contrast": True}) == [0.0, 1.0]


def test_properties_of_the_scan_and_of_the_view_are_in_mm() -> None:
    snapshot = listed(KVP=[100.0, 120.0])
    length, voxel = measured(snapshot, ("scan_length_mm", "voxel_mm"), ids(2), TWO_EDGES)
    assert (length.mean, length.std) == (210.0, 10.0)  # type: ignore[union-attr]  # 100 and 110 voxels of 2 mm
    assert (voxel.mean, voxel.std) == (3.0, 1.0)  # type: ignore[union-attr]  # 8 and 16 voxels of 2 mm as 8
    snapshot.volumes["v1"].__dict__["shape"] = (100, 100, 200)
    (field,) = measured(snapshot, ("field_of_view_mm",), ids(2), ONE_EDGE)
    assert (field.mean, field.std) == (340.0, 40.0)  # type: ignore[union-attr]  # (180 + 200)·2/2 and (100 + 200)·2/2


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("KVP",), r"KVP, which is 120 for all training volumes"),
        (("voxel_mm",), r"voxel_mm, which is 2 for all training volumes.*view\.more_edges"),
        (("PatientSex",), r"PatientSex, which has 1 distinct values in the training volumes \(F\)"),
        (("ManufacturerModelName",), r"ManufacturerModelName, which has 101 distinct values"),
        (("SeriesInstanceUID",), r"SeriesInstanceUID, which identifies a scan"),
        (("age", "KVP"), r"names age, which is no column of the snapshot; it has KVP, .*every volume has voxel_mm"),
        (("kernel",), r"kernel, which has 0 distinct values in the training volumes \(none\)"),
    ],
)
def test_what_teaches_nothing_or_is_not_there_is_refused(names: tuple[str, ...], said: str) -> None:
    snapshot = listed(
        KVP=[120.0] * 102,
        PatientSex=["F"] * 101 + ["M"],
        ManufacturerModelName=[f"M {n}" for n in range(102)],
        SeriesInstanceUID=["1.2.3", "1.2.4"] * 51,
        kernel=[None] * 101 + ["B"],
    )
    with pytest.raises(InputError, match=said):
        measured(snapshot, names, ids(101), ONE_EDGE)


def test_identifiers_are_not_offered() -> None:
    snapshot = listed(KVP=[100.0, 120.0], SeriesInstanceUID=["1.2.3", "1.2.4"])
    with pytest.raises(InputError, match="it has KVP, and every volume") as caught:
        measured(snapshot, ("patient_key",), ids(2), ONE_EDGE)
    assert "InstanceUID" not in str(caught.value)


def test_a_column_that_one_value_makes_a_category_is_named() -> None:
    """R writes NA where nothing is known, and a diameter would be a category of as many values as there are scans."""
    dose = ["1.5", "2.5", "NA", "4"]
    (found,) = measured(listed(label_dose=dose), ("label_dose",), ids(4), ONE_EDGE)
    assert found == Category(name="label_dose", values=("1.5", "2.5", "4", "NA"))
    assert nearly_numbers([Number(name="age_years", mean=1.0, std=1.0), found]) == [
        "The condition label_dose is taken as a category of 4 values, although most are numbers; 'NA' is no number. Leave the "
        "field in labels.csv empty where nothing is known, if it should be a number."
    ]
    with pytest.raises(
        InputError, match=r"has 101 distinct values.*or numbers alone; 'NA' is no number\. .* empty where"
    ):
        measured(listed(label_dose=[*map(str, range(100)), "NA"]), ("label_dose",), ids(101), ONE_EDGE)
    assert not nearly_numbers([Category(name="stage", values=("1", "II", "III"))])


@pytest.mark.parametrize("value", [[60], {"years": 60}, float("nan"), float("inf")])
def test_a_value_that_is_not_one_number_or_text_is_named_once(value: Any) -> None:
    with pytest.raises(ValueError, match=r"sample\.conditions\.age_years is .*; expected one finite number") as caught:
        SampleConfig(conditions={"age_years": value})
    assert str(caught.value).count("age_years is") == 1


def test_text_that_yaml_reads_otherwise_is_to_be_quoted() -> None:
    known = (Category(name="nodule", values=("01", "yes")),)
    for value in SampleConfig(conditions={"nodule": True}).conditions["nodule"], 1:
        with pytest.raises(InputError, match=r"it knows nodule: 01, yes\. YAML reads yes.* put the text in quotes"):
            check_asked(known, {"nodule": value})
    with pytest.raises(InputError, match=r"it knows nodule: 01, yes\.$"):
        check_asked(known, {"nodule": "no"})


def test_a_condition_is_named_once() -> None:
    with pytest.raises(ValueError, match="KVP more than once"):
        global_config(conditions=["KVP", "KVP"])
    with pytest.raises(ValueError, match="KVP, which is label_column already"):
        global_config(conditions=["KVP"], label_column="KVP")


def test_what_is_asked_for_is_checked_against_what_the_model_knows() -> None:
    known = (Number(name="age_years", mean=60.0, std=5.0), Category(name="PatientSex", values=("F", "M")))
    assert check_asked(known, {"age_years": 60, "PatientSex": "F"}) == []
    (far,) = check_asked(known, {"age_years": 99})
    assert "age_years is 99; the training's values lie in about 45 to 75" in far
    with pytest.raises(
        InputError, match=r"names age, .* it knows age_years: a number, about 45 to 75; PatientSex: F, M"
    ):
        check_asked(known, {"age": 60})
    with pytest.raises(InputError, match=r"PatientSex is 'X'.*PatientSex: F, M"):
        check_asked(known, {"PatientSex": "X"})
    with pytest.raises(InputError, match=r"age_years is 'old'; expected a number"):
        check_asked(known, {"age_years": "old"})


# -- grids --------------------------------------------------------------------------------------------------------------


def test_boxes_of_every_edge_are_the_stores_views_of_that_edge(tmp_path: Path) -> None:
    store = VolumeStore.open(write_store(tmp_path / "store"))
    view, whole = ViewConfig(size=8, edge=32, more_edges=(16, 24)), dataset(tmp_path / "store")
    data = type(whole)(store, [f"v{n}" for n in range(len(SHAPES))], view, whole._window, cache_mb=1)
    for place, edge in enumerate(view.edges):
        assert view.at(edge).voxel_mm(1.0) == edge / 8
        for index in (0, 3):
            expected = np.clip(store.read_view(f"v{index}", 8, edge), -1000, 1000) / 1000
            for _ in range(2):  # as read, and out of the cache
                found = data.get(index, Change(edge=place))
                np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)
    assert float((data.get(0, Change(edge=1)) - data.get(0)).abs().max()) > 0.1
    shifted = data.get(0, Change(edge=1, shift=(4, 0, 0)))
    middle = tuple(n // 2 + by for n, by in zip(SHAPES[0], (4, 0, 0), strict=True))
    expected = np.clip(store.read_view("v0", 8, 16, middle), -1000, 1000) / 1000  # type: ignore[arg-type]
    np.testing.assert_allclose(shifted[0].numpy(), expected, atol=1e-6)


def test_every_edge_is_drawn_as_often_and_moves_no_other_change() -> None:
    drawn = [Augmentation(max_shift=8, num_edges=3).draw(seed) for seed in range(3000)]
    counts = np.bincount([change.edge for change in drawn])
    assert len(counts) == 3
    assert counts.min() > 900
    single = [Augmentation(max_shift=8).draw(seed) for seed in range(100)]
    assert [change.shift for change in single] == [change.shift for change in drawn[:100]]
    assert {change.edge for change in single} == {0}


@pytest.mark.parametrize(
    ("view", "said"),
    [
        ({"size": 8, "edge": 16, "more_edges": [20]}, "does not divide view.more_edges 20"),
        ({"size": 8, "edge": 16, "more_edges": [16]}, "name each edge once"),
        ({"size": 8, "edge": 16, "more_edges": [-8]}, "more_edges -8"),
    ],
)
def test_edges_that_are_no_edges_are_refused(view: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ViewConfig.model_validate(view)


def test_a_view_of_one_edge_is_written_as_before() -> None:
    assert ONE_EDGE.model_dump(mode="json") == {"size": 8, "edge": 8, "centre": None}
    assert TWO_EDGES.model_dump(mode="json")["more_edges"] == [16]
    assert not {"conditions", "seconds"} & global_config().key_fields().keys()
    assert global_config(conditions=["KVP"]).key_fields()["conditions"] == ["KVP"]
    assert not {"conditions", "edge"} & SampleConfig().key_fields().keys()
    assert SampleConfig(edge=16).key_fields()["edge"] == 16


# -- a training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    """Five volumes of 16³ voxels of 8 mm with ages and sexes; v4 is held out, v3 says nothing of itself."""
    root = tmp_path_factory.mktemp("conditions")
    store = VolumeStore.create(root / "store", spacing_mm=8.0, num_levels=1, interpolation="linear")
    facts: list[dict[str, Any]] = [
        {"age_years": 50.0, "PatientSex": "F"},
        {"age_years": 60.0, "PatientSex": "M"},
        {"age_years": 70.0, "PatientSex": "F"},
        {},
        {"age_years": 80.0, "PatientSex": "O"},
    ]
    for index, attributes in enumerate(facts):
        hu = np.random.default_rng(index).integers(-900, 200, (16, 16, 16)).astype(np.int16)
        store.write(Volume(hu, (8.0,) * 3, (0.0,) * 3), volume_id=f"v{index}", attributes=attributes)
    snapshot = list_volumes(store, {f"v{index}": f"p{index}" for index in range(5)})
    return snapshot, make_split(root / "split", snapshot, ids(4), ["v4"])


def above(**changes: Any) -> TrainingConfig:
    return global_config(
        **{"conditions": NAMES, "label_dropout": 0.3, "batch_size": 4, "steps": 4, "val_every": 4, **changes}
    )


@pytest.fixture(scope="module")
def below(data: tuple[Ref, Ref], tmp_path_factory: pytest.TempPathFactory) -> Ref:
    view = {"size": 8, "edge": 8, "more_edges": [16]}
    return trained(train_spec(local_config(view=view, steps=2), *data, tmp_path_factory.mktemp("local")))


@pytest.fixture(scope="module")
def spec(data: tuple[Ref, Ref], below: Ref, tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    return train_spec(above(), *data, tmp_path_factory.mktemp("global"), start=below)


@pytest.fixture(scope="module")
def checkpoint(spec: TrainSpec) -> Ref:
    return trained(spec)


def test_the_checkpoint_records_what_its_model_knows(checkpoint: Ref, below: Ref) -> None:
    document = Checkpoint.load(checkpoint.path)
    assert document.conditions is not None
    voxel, age, sex = document.conditions
    assert voxel == Number(name="voxel_mm", mean=12.0, std=4.0)
    assert isinstance(age, Number)
    assert (age.name, age.mean, age.std) == ("age_years", 60.0, pytest.approx(np.sqrt(200 / 3)))
    assert sex == Category(name="PatientSex", values=("F", "M"))
    assert document.model["num_values"] == 6
    assert (document.view.edge, document.view.more_edges) == (8, (16,))  # inherited from the local training
    raw = read_json(below.path / Checkpoint.NAME)
    assert "conditions" not in raw
    assert "num_values" not in raw["model"]
    info = load_info(checkpoint)
    assert info.conditions == document.conditions
    assert CheckpointInfo.from_document(info.to_document(step=1, seed=0, gates=None)).conditions == info.conditions


def test_each_volume_is_shown_with_the_voxel_distance_of_its_box(
    spec: TrainSpec, checkpoint: Ref, tmp_path: Path
) -> None:
    assembly = assemble(spec.model_copy(update={"directory": tmp_path}))
    training = Training(assembly, spec.model_copy(update={"directory": tmp_path}))
    seen: list[Batch] = []
    training.stepper._over_ranks = lambda turn, batch: (seen.append(batch), {"loss": torch.zeros(())})[1]  # type: ignore[assignment]
    order = Order(len(assembly.data), 4, spec.config.seed)
    batches = Loader(assembly.data, order, assembly.draw, 1, 0, pin=False).batches(0)
    store, found = VolumeStore.open(spec.snapshot.path), set()
    for number in range(6):
        loaded = next(batches)
        training.stepper.evaluate(number + 1, 0, "main", loaded)
        known = seen[-1].conditions
        assert known is not None
        assert known.values is not None
        for row, index in enumerate(loaded.indices):
            voxel = 12.0 + 4.0 * float(known.values[row, 0])
            hu = np.clip(
                store.read_view(f"v{index}", 8, round(voxel)), -1000, 1000
            )  # edges of 8 and 16 voxels of 8 mm, as 8
            np.testing.assert_allclose(loaded.volumes[row, 0].numpy() * 1000, hu, atol=1e-2)
            found.add((index, round(voxel)))
            assert float(known.values[row, 3]) == float(index != 3)  # whether the age is known
    assert {voxel for _, voxel in found} == {8, 16}
    held_out = assembly.held_out.conditions
    assert held_out is not None
    assert held_out.values is not None
    age = (80.0 - 60.0) / np.sqrt(200 / 3)
    np.testing.assert_allclose(held_out.values.numpy(), [[-1.0, 1.0, age, 1.0, 0.0, 0.0]], rtol=1e-5)


def test_a_stopped_training_goes_on_to_the_same_bits(
    spec: TrainSpec, checkpoint: Ref, data: tuple[Ref, Ref], below: Ref, tmp_path: Path
) -> None:
    again = train_spec(above(checkpoint_every=1), *data, tmp_path, start=below)
    training = Training(assemble(again), again)
    with pytest.raises(Stopped):
        training.run(lambda: training.progress.step >= 2)
    Training(assemble(again), again).run(lambda: False)
    for name in ("model.safetensors", "ema.safetensors"):
        one, other = load_tensors(checkpoint.path / name), load_tensors(_commit(again).path / name)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) for key in one)
    assert np.abs(one["value_embedder.2.weight"]).max() > 0  # it starts at zero, and learns


def test_what_cannot_be_told_apart_is_refused(data: tuple[Ref, Ref], below: Ref) -> None:
    with pytest.raises(InputError, match=r"several edges \(8, 16 level-0 voxels\).*Name voxel_mm in its conditions"):
        check_training(*data, below, above(conditions=["age_years"]))
    with pytest.raises(InputError, match=r"position 'rotary' with view\.more_edges"):
        check_training(*data, below, above(position="rotary"))
    mapped = local_config(
        view={"size": 8, "edge": 8, "more_edges": [16]}, intensity={"mapping": "published-lidc"}, steps=2
    )
    with pytest.raises(InputError, match=r"more_edges is set, and intensity.mapping 'published-lidc'"):
        check_training(*data, None, mapped)
    with pytest.raises(InputError, match="conditions is set; a local denoiser takes no conditions"):
        check_training(*data, None, local_config(view={"size": 8, "edge": 8}, conditions=["age_years"]))


def test_weights_that_are_continued_keep_the_encoding_they_learned(
    data: tuple[Ref, Ref], below: Ref, checkpoint: Ref, tmp_path: Path
) -> None:
    snapshot = load_snapshot(data[0])
    fewer = make_split(tmp_path / "split", data[0], ["v0", "v1"], ["v4"])
    fresh = check_training(data[0], fewer, below, above()).info.conditions
    assert fresh[1] == Number(name="age_years", mean=55.0, std=5.0)
    continued = check_training(data[0], fewer, below, above(), checkpoint).info
    assert continued.conditions == load_info(checkpoint).conditions
    rows = conditions_of(continued, snapshot, ["v2"])
    assert rows is not None
    assert rows.values is not None
    assert rows.values[:, 0].tolist() == [-1.0, 1.0]  # at the first edge, then at the second


# -- samples ------------------------------------------------------------------------------------------------------------


def asking(**changes: Any) -> SampleConfig:
    return SampleConfig.model_validate({"num_volumes": 1, "num_steps": 4, "num_threads": 1, "device": "cpu", **changes})


def silent(done: int, total: int) -> None:
    pass


def hu_of(folder: Path) -> np.ndarray:
    return VolumeStore.open(folder / "samples.zarr").read_level("generated-00000").hu


def test_samples_of_each_edge_have_its_voxel_distance(checkpoint: Ref, data: tuple[Ref, Ref], tmp_path: Path) -> None:
    found = {}
    for name, how in {
        "default": asking(),
        "fine": asking(edge=8),
        "coarse": asking(edge=16),
        "distance": asking(conditions={"voxel_mm": 16}),
    }.items():
        stage.sample(checkpoint, how, tmp_path / name, silent)
        document, store = Samples.load(tmp_path / name), VolumeStore.open(tmp_path / name / "samples.zarr")
        zooms = nibabel.load(tmp_path / name / "nifti" / "0.nii.gz").header.get_zooms()  # type: ignore[attr-defined]
        found[name] = document.spacing_mm
        assert (document.spacing_mm, document.view.edge) == (store.spacing_mm, int(document.spacing_mm))
        assert zooms == (document.spacing_mm,) * 3
        assert document.sampler.conditions == {"voxel_mm": document.spacing_mm}
    assert found == {"default": 8.0, "fine": 8.0, "coarse": 16.0, "distance": 16.0}
    assert np.array_equal(hu_of(tmp_path / "default"), hu_of(tmp_path / "fine"))
    assert np.array_equal(hu_of(tmp_path / "coarse"), hu_of(tmp_path / "distance"))
    assert not np.array_equal(hu_of(tmp_path / "fine"), hu_of(tmp_path / "coarse"))
    with pytest.raises(InputError, match=r"sample.edge is 24.*an edge of 8 \(8 mm\), 16 \(16 mm\)"):
        stage.check(checkpoint, asking(edge=24))
    with pytest.raises(InputError, match=r"voxel_mm is 12; .* volumes of 8 \(edge 8\), 16 \(edge 16\) mm"):
        stage.check(checkpoint, asking(conditions={"voxel_mm": 12}))
    with pytest.raises(InputError, match=r"voxel_mm is 16, and sample.edge 8"):
        stage.check(checkpoint, asking(edge=8, conditions={"voxel_mm": 16}))


def test_conditions_change_samples_and_are_recorded(checkpoint: Ref, tmp_path: Path) -> None:
    for name, how in {
        "none": asking(),
        "old": asking(conditions={"age_years": 75, "PatientSex": "F"}),
        "guided": asking(conditions={"age_years": 75, "PatientSex": "F"}, guidance_scale=3.0),
        "ancient": asking(conditions={"age_years": 175}),
    }.items():
        stage.sample(checkpoint, how, tmp_path / name, silent)
    assert not np.array_equal(hu_of(tmp_path / "none"), hu_of(tmp_path / "old"))
    assert not np.array_equal(hu_of(tmp_path / "old"), hu_of(tmp_path / "guided"))
    old, ancient = Samples.load(tmp_path / "old"), Samples.load(tmp_path / "ancient")
    assert old.sampler.conditions == {"voxel_mm": 8.0, "age_years": 75, "PatientSex": "F"}
    assert old.warnings == []
    (warning,) = ancient.warnings
    assert warning.startswith("sample.conditions.age_years is 175; the training's values lie in about 35.51 to 84.49")
    with pytest.raises(InputError, match=r"names Age.*it knows voxel_mm: .*; age_years: .*; PatientSex: F, M"):
        stage.check(checkpoint, asking(conditions={"Age": 3}))
    with pytest.raises(ValueError, match="trained without labels"):
        stage.check(checkpoint, asking(label="F"))
    with pytest.raises(ValueError, match=r"conditions\.age_years is empty"):
        asking(conditions={"age_years": None})
    assert asking(conditions={"contrast": True}).conditions == {"contrast": "True"}


def test_an_evaluation_sees_real_volumes_at_the_edge_of_the_samples(
    checkpoint: Ref, data: tuple[Ref, Ref], tmp_path: Path
) -> None:
    from tasks.sample.stage import sample_stage

    context = RunContext(workdir=tmp_path)
    samples = sample_stage(checkpoint, asking(edge=16), context, silent).ref
    sources = Sources.open(samples, *data)
    expected = np.clip(VolumeStore.open(data[0].path).read_view("v4", 8, 16), -1000, 1000)
    np.testing.assert_allclose(sources.real.hu("v4"), expected, atol=1e-3)
    assert (sources.info.voxel_mm, sources.info.view.size) == (16.0, 8)


def test_conditions_and_a_measurement_work_together_at_the_edge_that_is_asked_for(
    checkpoint: Ref, data: tuple[Ref, Ref], tmp_path: Path
) -> None:
    how: dict[str, Any] = {**asking(edge=16, num_steps=6).model_dump(), "output": "state"}
    how.pop("batch_size")
    config = ReconstructConfig.model_validate({**how, "conditions": {"age_years": 75}})
    setting = Setting.of(checkpoint, config)
    assert setting.grid.spacing_mm == (16.0,) * 3
    operator = {"name": "downsampling", "factor": 2, "noise_std": 5.0}
    measurement = measure_stage(StoredVolume(data[0], "v4", 0), operator, setting, RunContext(workdir=tmp_path)).ref
    values = load_measurement(measurement)[1][0].numpy()
    reconstruct(checkpoint, measurement, config, tmp_path / "guided", silent)
    stage.sample(checkpoint, asking(edge=16, num_steps=6, output="state"), tmp_path / "free", silent)

    def residual(folder: Path) -> float:
        blocks = hu_of(folder).astype(float).reshape(4, 2, 4, 2, 4, 2).mean(axis=(1, 3, 5))
        return float(np.sqrt(np.square(blocks - values).mean()))

    assert residual(tmp_path / "guided") < 0.2 * residual(tmp_path / "free")
    document = Samples.load(tmp_path / "guided")
    assert document.sampler.conditions == {"voxel_mm": 16.0, "age_years": 75}
    assert document.guided is not None
    with pytest.raises(InputError, match=r"The measurement is of volumes of .* of 16 mm; the model makes .* of 8 mm"):
        reconstruct(checkpoint, measurement, config.model_copy(update={"edge": 8}), tmp_path / "other", silent)


def test_nothing_known_is_what_a_model_without_the_question_computes(checkpoint: Ref) -> None:
    from tasks.model.checkpoint import load_model

    model, _ = load_model(checkpoint, "raw", torch.device("cpu"))
    x = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    none = model(x, 300)
    assert torch.equal(model(x, 300, Conditions(values=torch.zeros(1, 6))), none)
    assert float((model(x, 300, Conditions(values=torch.ones(1, 6))) - none).abs().max()) > 1e-6
