"""Every command with input that cannot work: exit code 1 or 2, one message, no traceback, nothing kept as a fault."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from storage.artifacts import Ref, commit_artifact
from tasks.sample.config import SampleConfig
from tasks.sample.run import sample
from tests.factories import global_config, local_config, make_data, make_store, train_spec, trained
from tests.unit.tasks.foreign_files import TINY, published, save


@dataclass(frozen=True)
class World:
    """Artifacts that exist, by the names that the cases use."""

    folder: Path
    places: dict[str, str]


def draw(checkpoint: Ref, num_volumes: int, folder: Path) -> Ref:
    config = SampleConfig(num_volumes=num_volumes, num_steps=1, device="cpu", num_threads=1, nifti=False)
    sample(checkpoint, config, folder, lambda done, total: None)
    return commit_artifact(folder, "samples", stage="sample", recipe=1, inputs={"checkpoint": checkpoint}, config={})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    store, split = make_data(folder)
    local = trained(train_spec(local_config(), store, split, folder / "local"))
    spec = train_spec(global_config(ema_snapshots=3), store, split, folder / "global", start=local)
    whole = trained(spec)
    samples, two = (draw(whole, number, folder / f"samples-{number}") for number in (1, 2))
    one = make_store(folder / "one", 1)
    save(folder / "published.pt", published(TINY))
    (folder / "text.pt").write_text("these are no weights")
    (folder / "empty").mkdir()
    refs = {"store": store, "split": split, "local": local, "global": whole, "samples": samples, "two": two, "one": one}
    files = {name: str(folder / name) for name in ("published.pt", "text.pt", "empty")}
    return World(folder, {name: ref.uri for name, ref in refs.items()} | files)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("logging.raiseExceptions", False)  # Prefect's handler writes to the output of an earlier test
    yield
    torch.set_num_threads(threads)


TINY_TRAINING = (
    "-c tiny --set ingest.spacing_mm=8 --set ingest.num_levels=1 --set ingest.interpolation=linear "
    "--set recipe.local.view.size=16 --set recipe.local.view.edge=16 "
    "--set recipe.local.settings.preset=XS/10/0 --set recipe.global.settings.preset=XS/10/1"
)
SHA = "a" * 64
FILE = f" --set evaluate.extractor.path=x.pth --set evaluate.extractor.sha256={SHA}"
# words (a name of the world in braces) and part of the message
CASES = [
    ("demo-data @text.pt", "text.pt"),
    ("ingest missing", "missing"),
    ("ingest @text.pt", "text.pt"),
    ("ingest @empty", "empty"),
    ("ingest @empty --set ingest.spacing_mm=0", "ingest.spacing_mm"),
    (f"train local --store missing {TINY_TRAINING}", "missing"),
    (f"train local --store @empty {TINY_TRAINING}", "empty"),
    (f"train local --store @one {TINY_TRAINING}", "Training needs at least two patients"),
    (f"train local --store @store {TINY_TRAINING} --set ingest.spacing_mm=1", "8.0"),
    (f"train local --store @store {TINY_TRAINING} --set recipe.local.settings.label_column=x", "label_column"),
    (f"train global --store @store {TINY_TRAINING} --start @split", "split"),
    (f"train global --store @store {TINY_TRAINING} --start @global", "family 'global'"),
    ("train global --start missing", "missing is not the directory of a committed artifact"),
    ("train global --start {}", "is not a reference"),
    ("train best", "'best' is not a training"),
    ("train local --set recipe.local.settings.preset=ZZ", "Unknown preset 'ZZ'"),
    ("train local --set recipe.local.family=gan", "Unknown"),
    ("sample missing", "missing"),
    ("sample @empty", "empty"),
    ("sample @text.pt", "text.pt"),
    ("sample @split", "Sampling needs a checkpoint, got a split"),
    ("sample @local", "got a local denoiser"),
    ("sample @global --set sample.label=x", "label"),
    ("sample @global --set sample.sampler=x", "Unknown sampler 'x'"),
    ("sample @global --set sample.num_steps=0", "sample.num_steps"),
    ('sample {"kind":"checkpoint","uri":"/nowhere","digest":"sha256:1"}', "/nowhere"),
    ("evaluate @global", "evaluate needs samples, got a checkpoint"),
    ("evaluate @samples", "at least 2. Sample more"),
    ("evaluate missing", "missing"),
    (f"evaluate @two --set evaluate.extractor.name=medicalnet{FILE}", "x.pth, and there is no such file"),
    (
        f"evaluate @two --set evaluate.extractor.name=file{FILE} --set evaluate.extractor.axes=SPS",
        "evaluate.extractor: axes",
    ),
    ("evaluate @two --set evaluate.extractor=medical", "Unknown extractor 'medical'; there are auto, astra"),
    ("evaluate @two --set evaluate.extractor.seed=1", "evaluate.extractor.seed: unknown key"),
    ("ema @local", "Train with ema_snapshots above 0"),
    ("ema @split", "needs a checkpoint, got a split"),
    ("ema @global --sigma-rel=-1", "sigma_rel"),
    ("ema @global --sigma-rel=nan", "sigma_rel"),
    ("ema missing", "missing"),
    ("plan -c nothing", "'nothing' is not a configuration"),
    ("plan -c tiny --set recipe.local.settings.preset=B/12/4", "depth"),
    ("plan -c tiny --batch 0", "--batch"),
    ("run -c nothing", "'nothing' is not a configuration"),
    ("run --config=", "the configuration is empty text"),
    ("models ls --config=", "the name is empty"),
    ("lineage latest --config=", "the name is empty"),
    ("retrain --config=", "the name is empty"),
    ("retrain --dry-run --policy=", "the name is empty"),
    ("run -c tiny --set sample.guidance_scale=2", "guidance"),
    ("run -c tiny --set sample.label=x --set sample.guidance_scale=2", "label"),
    ("import-checkpoint missing.pt", "missing.pt does not exist"),
    ("import-checkpoint @empty", "is a folder"),
    ("import-checkpoint @text.pt", "text.pt"),
    ("import-checkpoint @published.pt --variant x", "Unknown variant 'x'"),
    ("import-checkpoint @published.pt --dataset x", "Unknown data set 'x'"),
    ("import-checkpoint @published.pt --axes yxz", "axis order is 'yxz'"),
    ("import-checkpoint @published.pt --spacing-mm nan", "spacing_mm is nan"),
    ("import-checkpoint @published.pt --window 5 1", "must lie below"),
    ("import-checkpoint @published.pt --volume-size 7", ""),
    ("import-checkpoint @published.pt --num-heads 5", ""),
    ("import-checkpoint @published.pt --output @empty/../local", "holds something else"),
    ("export-checkpoint @global @text.pt", "exports never overwrite"),
    ("export-checkpoint @split x.pt", "needs a checkpoint, got a split"),
    ("export-checkpoint missing x.pt", "missing"),
    ("export-checkpoint @global @text.pt/x.pt", "text.pt"),
    ("demo --dicom missing", "missing is not a folder"),
    ("demo --config nothing", "'nothing' is not a configuration"),
    ("unknown", "No such command"),
    ("sample", "Missing argument"),
]


@pytest.mark.parametrize(("words", "message"), CASES, ids=[words[:60] for words, _ in CASES])
def test_refused_in_one_message(world: World, words: str, message: str) -> None:
    arguments = [_placed(word, world) for word in words.split()]
    found = CliRunner().invoke(app, arguments)
    said = found.output
    assert found.exit_code in (1, 2), said
    assert "Traceback" not in said
    assert "fault of prdit" not in said
    assert message in " ".join(said.split())
    assert len(re.findall(r"^error: |╭─ Error |^\S+ is not a folder", said, re.M)) == 1, said
    assert not Path(".prdit/errors").exists()


def _placed(word: str, world: World) -> str:
    name, slash, rest = word.removeprefix("@").partition("/")
    return world.places[name] + slash + rest if word.startswith("@") else word
