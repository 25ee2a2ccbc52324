"""What the demo asks the deployment for."""

from pathlib import Path

from flows.config import from_parameters, load_config
from flows.demo import _parameters, _samples_line


def test_the_phantom_has_paths_below_the_state_directory_and_the_plain_configuration(tmp_path: Path) -> None:
    parameters = _parameters(None, "demo", tmp_path)
    assert parameters == {
        "configuration": "demo",
        "source": str(tmp_path / "demo-data"),
        "store": str(tmp_path / "store"),
        "overrides": {
            "workdir": str(tmp_path / "work"),
            "ingest": {"patient_key_file": str(tmp_path / "demo-data.patient-key")},
        },
    }
    assert from_parameters(**parameters).digest() == load_config("demo").digest()


def test_folders_of_scans_have_stores_of_their_own(tmp_path: Path) -> None:
    scans = [tmp_path / "a" / "ct", tmp_path / "b" / "ct"]
    first, second = [_parameters(folder, "demo", tmp_path / "state") for folder in scans]
    assert first["source"] == str(scans[0])
    assert first["store"] != second["store"]
    assert first["overrides"].keys() == {"workdir"}
    assert Path(first["store"]).name.startswith("store-ct-")


def test_a_file_keeps_its_settings_but_not_its_places(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: tiny\nstore: /elsewhere\nworkdir: /elsewhere\ningest: {min_slices: 4}\n")
    settings = from_parameters(**_parameters(None, str(path), tmp_path))
    assert (settings.base, settings.ingest.min_slices) == ("tiny", 4)
    assert settings.ingest.patient_key_file == str(tmp_path / "demo-data.patient-key")
    assert (settings.store, settings.workdir) == (str(tmp_path / "store"), str(tmp_path / "work"))


def test_the_samples_line_says_what_the_evaluation_found() -> None:
    figures = {
        "evaluate/anatomy_pass_share": 0.875,
        "evaluate/anatomy_pass_share_real": 1.0,
        "evaluate/nearest_training_distance": 138.4,
        "evaluate/nearest_training_distance_held_out": 155.2,
    }
    said = _samples_line(figures)
    assert said == (
        "88% could be a chest (100% of the real volumes), 138 HU from the nearest training volume (held-out volumes: 155)"
    )
    left_out = {name: value for name, value in figures.items() if "anatomy" not in name}
    assert _samples_line(left_out).startswith("anatomy left out")
    assert _samples_line({}) == ""
