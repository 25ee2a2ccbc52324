"""The registered model in a real MLflow: versions of checkpoints, aliases, and checkpoints that are fetched back."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from storage.artifacts import PROVENANCE, Ref, input_ref, load_provenance, verify_artifact
from storage.errors import DamagedArtifactError, InputError, MissingArtifactError
from storage.model_names import resolve
from storage.registry import CHALLENGER, CHAMPION, REFUSED, Registry, is_model_name
from storage.tracking import Tracker, TrackingUnavailableError
from tests.mlflow_process import Server
from tests.ports import free_ports
from tests.unit.tasks.registered import Lab


@pytest.fixture
def lab(tmp_path: Path, mlflow_file: Path) -> Lab:
    return Lab(tmp_path, f"sqlite:///{mlflow_file}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.stop()


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_checkpoint_is_one_version_however_often_it_is_registered(lab: Lab) -> None:
    first, second = lab.checkpoint(1), lab.checkpoint(2)
    made = lab.registry.register(first, "", {"prdit.policy": "nightly"})
    assert (made.version, made.checkpoint) == (1, first)
    assert made.tags["prdit.policy"] == "nightly"
    assert (made.tags["prdit.snapshot"], made.tags["prdit.digest"]) == (lab.snapshot.digest, first.digest)
    assert (made.tags["prdit.train_volumes"], made.tags["prdit.volume_size"]) == ("2", "8")
    assert lab.registry.register(first, "", {}).version == 1
    assert lab.registry.register(second, "", {}).version == 2
    assert [one.checkpoint.digest for one in lab.registry.versions()] == [first.digest, second.digest]
    assert not any(
        "DOE" in text or str(lab.root) in text for one in lab.registry.versions() for text in one.tags.values()
    )


def test_aliases_and_tags(lab: Lab) -> None:
    lab.register(1), lab.register(2)
    lab.registry.set_alias(CHAMPION, 1)
    lab.registry.set_alias(CHALLENGER, 2)
    assert lab.registry.find(CHAMPION).version == 1
    lab.registry.set_alias(CHAMPION, 2)
    assert lab.registry.find("2").aliases == (CHALLENGER, CHAMPION)
    lab.registry.delete_alias(CHALLENGER)
    lab.registry.delete_alias(CHALLENGER)
    assert lab.registry.find(CHALLENGER) is None
    lab.registry.tag(1, {REFUSED: "patient forgotten"})
    assert [one.refused for one in lab.registry.versions()] == ["patient forgotten", ""]
    assert lab.registry.find("3") is None


def test_models_that_prdit_did_not_make_are_left_out(lab: Lab) -> None:
    lab.register(1)
    MlflowClient(lab.uri).create_model_version(lab.registry.name, "/elsewhere")
    assert [one.version for one in lab.registry.versions()] == [1]


def test_asking_a_file_that_is_not_there_makes_none(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert Registry(uri).versions() == []
    with pytest.raises(InputError, match=r"no alias 'champion' of model 'prdit': aliases none; versions none"):
        resolve("models:/prdit@champion", uri, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_gives_the_checkpoint_where_it_was_trained(lab: Lab) -> None:
    ref = lab.checkpoint(1)
    lab.registry.register(ref, "", {})
    lab.registry.set_alias(CHAMPION, 1)
    name = lab.registry.name
    assert resolve(f"models:/{name}@champion", lab.uri, lab.workdir) == ref
    assert resolve(f"models:/{name}/1", lab.uri, lab.workdir) == ref
    assert not (lab.workdir / "models").exists()


def test_a_checkpoint_that_is_gone_or_damaged_is_fetched_and_kept(lab: Lab) -> None:
    ref = lab.checkpoint(1)
    before = _files(ref.path)
    lab.registry.register(ref, "", {})
    (ref.path / "ema.safetensors").write_bytes(b"damaged")
    got = resolve(f"models:/{lab.registry.name}/1", lab.uri, lab.workdir)
    assert got.path == lab.workdir / "models" / ref.digest.removeprefix("sha256:")
    assert got.digest == ref.digest
    fetched = _files(got.path)
    assert {key: value for key, value in fetched.items() if key != PROVENANCE} == {
        key: value for key, value in before.items() if key != PROVENANCE
    }
    assert input_ref(got, "snapshot") == lab.snapshot  # found by its digest in the damaged copy's record
    (got.path / "model.safetensors").write_bytes(b"damaged, too")
    again = resolve(f"models:/{lab.registry.name}/1", lab.uri, lab.workdir)
    verify_artifact(again)
    assert again == got
    assert [path.name for path in (lab.workdir / "models").iterdir() if path.is_dir()] == [got.path.name]


def test_elsewhere_the_inputs_are_named_by_digest_and_not_found(lab: Lab, tmp_path: Path) -> None:
    ref = lab.checkpoint(1)
    lab.registry.register(ref, "", {})
    got = resolve(f"models:/{lab.registry.name}/1", lab.uri, tmp_path / "another machine")
    split = load_provenance(got).inputs["split"]
    assert split.digest == lab.split.digest
    with pytest.raises(MissingArtifactError, match="not-on-this-machine"):
        load_provenance(split)


def test_files_that_mlflow_has_changed_are_refused(lab: Lab, tmp_path: Path) -> None:
    ref = lab.checkpoint(1)
    version = lab.registry.register(ref, "", {})
    location = MlflowClient(lab.uri).get_logged_model(version.model_id).artifact_location.removeprefix("file://")
    (Path(location) / "model.safetensors").write_bytes(b"other weights")
    shutil.rmtree(ref.path)
    with pytest.raises(
        DamagedArtifactError, match=r"model\.safetensors of version 1 in MLflow is not what was registered"
    ):
        resolve(f"models:/{lab.registry.name}/1", lab.uri, lab.workdir)
    record = Path(location) / PROVENANCE
    record.write_text(record.read_text().replace('"model.safetensors"', '"../../model.safetensors"'))
    with pytest.raises(DamagedArtifactError, match="is not the checkpoint"):
        resolve(f"models:/{lab.registry.name}/1", lab.uri, lab.workdir)
    assert [path for path in (lab.workdir / "models").iterdir() if path.name != "lock"] == []


@pytest.mark.parametrize("what", ["model", "files", "one file"])
def test_files_that_are_gone_here_and_in_mlflow_are_not_a_server_that_is_away(lab: Lab, what: str) -> None:
    ref, client = lab.checkpoint(1), MlflowClient(lab.uri)
    version = lab.registry.register(ref, "", {})
    location = Path(client.get_logged_model(version.model_id).artifact_location.removeprefix("file://"))
    shutil.rmtree(ref.path)
    if what == "model":
        client.delete_logged_model(version.model_id)
    elif what == "files":
        shutil.rmtree(location)
    else:
        (location / "model.safetensors").unlink()
    name = "model.safetensors" if what == "one file" else PROVENANCE
    with pytest.raises(MissingArtifactError, match=rf"does not have its {name} any more.*`prdit models promote`"):
        resolve(f"models:/{lab.registry.name}/1", lab.uri, lab.workdir)
    assert [path for path in (lab.workdir / "models").iterdir() if path.name != "lock"] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models:/NAME@champoin", "no alias 'champoin'"),
        ("models:/NAME/7", "no version '7'"),
        ("models:/other@champion", "of model 'other'"),
        ("models:champion", "names no model: expected models:/prdit@champion"),
        ("models:/NAME", "names no model"),
        ("models:/NAME/latest", "names no model"),
    ],
)
def test_names_that_name_nothing(lab: Lab, text: str, says: str) -> None:
    lab.register(1)
    name = text.replace("NAME", lab.registry.name)
    assert is_model_name(name)
    with pytest.raises(InputError, match=says):
        resolve(name, lab.uri, lab.workdir)


def test_only_whole_checkpoints_are_registered(lab: Lab) -> None:
    with pytest.raises(InputError, match="Only checkpoints are registered; got a split"):
        lab.registry.register(lab.split, "", {})
    ref = lab.checkpoint(1)
    (ref.path / "ema.safetensors").unlink()
    with pytest.raises(MissingArtifactError):
        lab.registry.register(ref, "", {})
    assert lab.registry.versions() == []


def test_a_server_that_does_not_answer(lab: Lab) -> None:
    uri = f"http://127.0.0.1:{free_ports()}"
    with pytest.raises(TrackingUnavailableError, match=r"cannot be used \(connection refused\)"):
        Registry(uri)
    with pytest.raises(TrackingUnavailableError, match="is no address"):
        Registry("http://:5000")


def test_on_a_server_the_model_of_the_run_is_used_and_another_folder_fetches_it(
    lab: Lab, server: Server, tmp_path: Path
) -> None:
    ref = lab.checkpoint(1)
    tracker = Tracker(server.uri, "runs", tmp_path / "outbox")
    run = tracker.start_run("train", parent=None, source="prdit/train", tags={}, params={})
    files = [ref.path / "ema.safetensors", ref.path / "checkpoint.json"]
    tracker.log_model(run, "checkpoint-network", files, digest=ref.digest, step=6, facts={"family": "network"})
    tracker.end_run(run, "FINISHED")
    tracker.flush()
    run_id = tracker.mlflow_id(run)
    registry = Registry(server.uri, lab.registry.name, workdir=lab.workdir)
    version = registry.register(ref, run_id, {})
    client = MlflowClient(server.uri)
    models = client.search_logged_models([tracker.experiment_id])
    assert [model.model_id for model in models] == [version.model_id]  # the one that the run had made
    assert models[0].source_run_id == version.run_id == run_id
    listed = {one.path for one in client.list_logged_model_artifacts(version.model_id)}
    assert listed == {"ema.safetensors", "checkpoint.json", "model.safetensors", "metrics.jsonl", PROVENANCE}
    registry.set_alias(CHAMPION, 1)
    got = resolve(f"models:/{registry.name}@champion", server.uri, tmp_path / "elsewhere")
    assert got.digest == ref.digest
    shutil.rmtree(ref.path)
    for path in Path(server.root).rglob("model.safetensors"):
        path.unlink()
    with pytest.raises(MissingArtifactError, match=r"does not have its model\.safetensors any more"):
        resolve(f"models:/{registry.name}@champion", server.uri, lab.workdir)
    with pytest.raises(InputError, match="has no run"):
        registry.register(lab.checkpoint(2), "0" * 32, {})


def test_a_reference_is_usable_without_a_working_folder(lab: Lab) -> None:
    lab.register(1)
    found = Registry(lab.uri, lab.registry.name).versions()[0].checkpoint
    assert found == Ref(kind="checkpoint", uri=f"train-local/{1:032x}", digest=found.digest)
