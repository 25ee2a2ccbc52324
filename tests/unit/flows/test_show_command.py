"""`prdit show`: one volume, one snapshot, as text and as JSON, and the pictures."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import app
from storage.documents.samples import Samples
from storage.documents.snapshot import Roles, SnapshotVolume
from storage.documents.volume import ScanFacts
from storage.geometry import Volume
from storage.snapshots import Listing, list_all, role_ledger, update, withdraw
from storage.volume_store import VolumeStore
from tasks.show.picture import half_blocks
from tasks.show.snapshot import summary
from tests.exported import GENERATED, SEED, sample_store
from tests.unit.storage.documents.examples import EXAMPLES

ATTRIBUTES = {"Manufacturer": "SIEMENS", "KVP": 120.0, "contrast": True, "patient_key": "p1"}
SCAN = ScanFacts(
    scan="1.2.3",
    files_digest="f" * 64,
    recipe=2,
    num_slices=40,
    spacing_mm=(0.7, 0.7, 5.0),
    notes=("units that are not given are mm",),
    pixels="e" * 64,
)


def entry(patient: str, attributes: dict[str, object], known: bool = True, **labels: str) -> SnapshotVolume:
    return SnapshotVolume(
        patient_key=patient, patient_known=known, shape=(4, 6, 8), attributes=attributes, labels=labels
    )


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    """Three snapshots: aaaa1 and aaaa2; bbbb1 too, aaaa2 with a label and another patient; without aaaa1, which is withdrawn."""
    made = VolumeStore.create(tmp_path / "store", spacing_mm=2.0, num_levels=2, interpolation="linear")
    hu = np.full((4, 6, 8), -1000, dtype=np.int16)
    hu[:, :, :4] = 400  # the patient's right is white
    for name in ("aaaa1", "aaaa2", "bbbb1"):
        made.write(
            Volume(hu, (2.0,) * 3, (-7.5, -10.0, 30.0)), volume_id=name, attributes=ATTRIBUTES, scan=SCAN
        )  # fmt: skip
    list_all(
        made, {"aaaa1": entry("p1", ATTRIBUTES), "aaaa2": entry("p2", {"KVP": 100, "Manufacturer": "GE"})}, "ingest"
    )
    second = {
        "aaaa2": entry("p1", {"KVP": 100, "Manufacturer": "GE"}, nodule="yes"),
        "bbbb1": entry("p3", {"Manufacturer": "GE"}, known=False),
    }
    update(made, lambda old: replace(old, volumes={**old.volumes, **second}), "ingest")
    withdraw(made, ["aaaa1"])
    role_ledger(made.path, "default").update(lambda _: Roles(roles={"p1": "val", "p3": "train"}))
    return made


def call(store: VolumeStore, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["show", str(store.path), *arguments])


def value(store: VolumeStore, *arguments: str) -> dict[str, object]:
    shown = call(store, *arguments, "--json")
    assert shown.exit_code == 0, shown.output
    found: dict[str, object] = json.loads(shown.stdout.splitlines()[-1])
    return found


def test_a_volume_as_json(store: VolumeStore) -> None:
    shown = value(store, "aaaa2")
    record = store.commit_record("aaaa2")
    assert shown == {
        "volume_id": "aaaa2",
        "store": str(store.path),
        "shape": [4, 6, 8],
        "spacing_mm": [2.0, 2.0, 2.0],
        "origin_mm": [-7.5, -10.0, 30.0],
        "size_mm": [16.0, 12.0, 8.0],
        "num_bytes": sum(path.stat().st_size for path in store.folder("aaaa2").rglob("*") if path.is_file()),
        "folder": str(store.folder("aaaa2")),
        "attributes": ATTRIBUTES,
        "scan": SCAN.model_dump(mode="json"),
        "arrays": {
            "0": {"shape": [4, 6, 8], "sha256": record.arrays["0"].sha256},
            "1": {"shape": [2, 3, 4], "sha256": record.arrays["1"].sha256},
        },
        "snapshots": [1, 2, 3],
        "listed": True,
        "withdrawn": False,
        "patient_key": "p1",  # of the newest snapshot that lists it
        "patient_known": True,
        "labels": {"nodule": "yes"},
        "roles": {"default": "val"},
    }


def test_a_volume_as_text(store: VolumeStore) -> None:
    lines = [" ".join(line.split()) for line in call(store, "bbbb").stdout.splitlines()]
    assert lines[0] == f"volume bbbb1 of {store.path}"
    for line in (
        "shape (z, y, x) 4 × 6 × 8",
        "size (x, y, z) 16 × 12 × 8 mm",
        "origin (LPS) -7.5, -10, 30 mm",
        "snapshots 2, 3 (listed now)",
        "patient unknown: counts as one of its own",
        "role train (split default)",
        "Manufacturer SIEMENS",
        "contrast true",
        "num_slices 40",
        "note units that are not given are mm",
        f"files sha256 {'f' * 64}",
        f"level 1 {store.commit_record('bbbb1').arrays['1'].sha256} 2 × 3 × 4",
    ):
        assert line in lines
    gone = call(store, "aaaa1").stdout
    assert "1, 2 (withdrawn)" in gone


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["aaaa"], "2 volumes begin so, expected one. `prdit ls"),
        (["cccc1"], "0 volumes begin so, expected one"),
        (["bbb"], "expected 4 characters or more"),
        (["bbbb", "--snapshot", "1"], "leave one of them out"),
        (["--png", "a.png"], "give its id"),
        (["bbbb", "--thumbnail"], "write a picture with --png"),
        (["--snapshot", "7"], "expected a number, or 8 digits of a digest"),
    ],
)
def test_errors_are_one_sentence(store: VolumeStore, arguments: list[str], words: str) -> None:
    shown = call(store, *arguments)
    assert shown.exit_code == 1
    assert words in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_a_volume_without_a_snapshot(tmp_path: Path) -> None:
    made = VolumeStore.create(tmp_path / "samples", spacing_mm=2.0, num_levels=1, interpolation="none")
    made.write(Volume(np.zeros((2, 2, 2), np.int16), (2.0,) * 3, (0.0,) * 3), volume_id="0000", attributes={})
    shown = value(made, "0000")
    assert (shown["snapshots"], shown["listed"], shown["patient_key"], shown["scan"]) == ([], False, None, None)
    assert "none (not listed now)" in call(made, "0000").stdout
    assert "no snapshot" in call(made).stderr


def test_samples_are_shown_by_their_folder(tmp_path: Path) -> None:
    made = sample_store(tmp_path / "samples.zarr")
    samples = EXAMPLES["samples"]
    assert isinstance(samples, Samples)
    samples.save(tmp_path)
    for place in (tmp_path, made.path):
        shown = CliRunner().invoke(app, ["show", str(place), GENERATED, "--json"])
        found = json.loads(shown.stdout.splitlines()[-1])
        assert (found["volume_id"], found["attributes"]["seed"]) == (GENERATED, SEED)
        without = CliRunner().invoke(app, ["show", str(place)])
        assert without.exit_code == 1
        assert (
            f"1 generated volume(s) and no snapshots: give the id of one of them, such as {GENERATED}."
            in without.stderr
        )


def test_a_snapshot_and_how_it_changed(store: VolumeStore) -> None:
    shown = value(store, "--snapshot", "2")
    assert (shown["number"], shown["num_volumes"], shown["num_patients"], shown["num_unknown_patients"]) == (2, 3, 2, 1)
    assert shown["change"] == "ingest: 1 new, 1 with another patient, 1 with other labels"
    before = shown["before"]
    assert isinstance(before, dict)
    assert before["number"] == 1
    assert [before[name] for name in ("new", "left_out", "with_another_patient", "with_other_labels")] == [
        ["bbbb1"],
        [],
        ["aaaa2"],
        ["aaaa2"],
    ]
    assert shown["size_mm"] == {
        axis: {"min": n, "median": n, "max": n} for axis, n in zip("xyz", (16, 12, 8), strict=True)
    }
    assert shown["attributes"] == {
        "KVP": {"missing": 1, "min": 100, "median": 110, "max": 120},
        "Manufacturer": {"missing": 0, "counts": {"GE": 2, "SIEMENS": 1}, "num_others": 0},
        "contrast": {"missing": 2, "counts": {"yes": 1}, "num_others": 0},
    }
    assert shown["labels"] == {"nodule": {"missing": 2, "counts": {"yes": 1}, "num_others": 0}}
    digest = str(shown["snapshot"]).removeprefix("sha256:")
    assert value(store, "--snapshot", digest[:10]) == shown


def test_the_newest_snapshot_is_shown_where_none_is_named(store: VolumeStore) -> None:
    shown = call(store)
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert "(number 3, " in lines[0]
    for line in (
        "volumes 2 of 2 patients, 1 of them unknown",
        "since number 2 1 left out",
        "size z 8 to 8, median 8 mm",
        "KVP 100 to 100, median 100; 1 without",
        "Manufacturer GE 2",
        "nodule yes 1; 1 without",
    ):
        assert line in lines
    assert value(store, "--snapshot", "1")["before"] is None


def test_a_snapshot_that_is_taken_twice_is_compared_with_the_step_before(store: VolumeStore) -> None:
    update(store, lambda _: Listing(volumes={"bbbb1": entry("p3", {})}), "test")
    first = value(store, "--snapshot", "1")
    again = {"aaaa1": entry("p1", ATTRIBUTES), "aaaa2": entry("p2", {"KVP": 100, "Manufacturer": "GE"})}
    update(store, lambda _: Listing(volumes=again), "test")
    last = value(store, "--snapshot", "5")
    assert (last["snapshot"], last["number"]) == (first["snapshot"], 5)
    assert last["before"]["left_out"] == ["bbbb1"]  # type: ignore[index]
    assert value(store, "--snapshot", str(first["snapshot"]))["number"] == 5


def test_an_empty_snapshot(store: VolumeStore) -> None:
    update(store, lambda _: Listing(), "test")
    shown = value(store)
    assert (shown["num_volumes"], shown["size_mm"], shown["attributes"]) == (0, {}, {})
    assert call(store).exit_code == 0


def test_values_beyond_the_most_frequent_are_counted() -> None:
    rows = [
        {"kernel": f"B{n:02d}", "flag": n > 0, "SeriesInstanceUID": "1.2"}
        for n in range(10)
        for _ in range(1 + (n == 7))
    ]
    found = summary(rows)
    assert found["kernel"]["num_others"] == 2
    assert list(found["kernel"]["counts"].items())[:2] == [("B07", 2), ("B00", 1)]
    assert found["flag"] == {"missing": 0, "counts": {"yes": 10, "no": 1}, "num_others": 0}
    assert "SeriesInstanceUID" not in found


def test_the_picture_has_three_planes_in_two_windows(store: VolumeStore, tmp_path: Path) -> None:
    shown = value(store, "bbbb1", "--png", str(tmp_path / "v.png"))
    assert shown["png"] == str(tmp_path / "v.png")
    picture = np.asarray(Image.open(tmp_path / "v.png"))
    assert picture.shape == (216, 6 * 288 + 5 * 6)  # 6 voxels high, 8 wide, 288 pixels for the wider one
    assert picture[150, 40] == 255  # axial: right of the patient on the left, 400 HU above both windows
    assert picture[150, 240] == round(255 * (-1000 + 1350) / 1500)  # the lung window begins at -1350 HU
    assert picture[150, 3 * 294 + 240] == 0  # the mediastinal window begins at -125 HU


def test_half_blocks_have_two_pixels_per_character() -> None:
    hu = np.full((8, 8, 8), -1350, dtype=np.int16)
    hu[:, :4] = 150  # anterior half: upper half of the axial slice
    text = half_blocks(Volume(hu, (1.0,) * 3, (0.0,) * 3), columns=26)
    assert text.plain == ("▀" * 8 + " " + "▀" * 8 + " " + "▀" * 8 + "\n") * 4
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="truecolor", width=40).print(text, end="")
    first, *_, last = out.getvalue().splitlines()
    assert first.startswith("\x1b[38;2;255;255;255;48;2;255;255;255m▀")
    assert last.startswith("\x1b[38;2;0;0;0;48;2;0;0;0m▀")
