"""`prdit ema`: snapshots of a training, and the checkpoint made of them, against the weights the training went through."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows.cli import app
from prdit_models.posthoc_ema import TRACKED_SIGMAS, gamma_of
from storage.artifacts import Ref, load_provenance, verify_artifact
from storage.checkpoints import load_tensors
from storage.documents.checkpoint import Checkpoint
from storage.errors import MissingArtifactError
from storage.files import read_json
from tasks.average.config import AverageConfig
from tasks.average.run import average_stage
from tasks.model.checkpoint import load_model
from tasks.run.stage import RunContext
from tasks.train.__main__ import _commit
from tasks.train.loop import Stopped, Training
from tasks.train.setup import assemble
from tests.factories import make_data, small_config, train_spec

STEPS, EVERY = 24, 4
KEY = "coarse.mlp_denoise.linear_final.weight"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data: tuple[Ref, Ref], tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, np.ndarray]:
    """A training with snapshots, stopped once on the way, and one weight matrix as it was after every update."""
    config = small_config(steps=STEPS, ema_snapshots=EVERY, checkpoint_every=100)
    spec = train_spec(config, *data, tmp_path_factory.mktemp("trained"))
    seen: dict[int, np.ndarray] = {}

    def look(training: Training, until: int) -> bool:
        seen[training.progress.updates] = training.arrays.parameters[KEY].detach().numpy().copy()
        return training.progress.updates >= until

    training = Training(assemble(spec), spec)
    with pytest.raises(Stopped):
        training.run(lambda: look(training, 10))
    resumed = Training(assemble(spec), spec)
    resumed.run(lambda: look(resumed, STEPS + 1))
    seen[resumed.progress.updates] = resumed.arrays.parameters[KEY].detach().numpy()
    return _commit(spec), np.stack([seen[update] for update in range(1, STEPS + 1)])


def literal(weights: np.ndarray, sigma: float) -> np.ndarray:
    edges = np.arange(len(weights) + 1, dtype=np.float64) ** (gamma_of(sigma) + 1.0)
    return np.tensordot(np.diff(edges) / edges[-1], weights.astype(np.float64), axes=1)


def test_snapshots_are_the_literal_averages_also_after_a_stop(trained: tuple[Ref, np.ndarray]) -> None:
    ref, weights = trained
    entries = read_json(ref.path / "snapshots" / "snapshots.json")["snapshots"]
    assert [entry["updates"] for entry in entries] == [
        n for n in range(EVERY, STEPS + 1, EVERY) for _ in TRACKED_SIGMAS
    ]
    for entry in entries:
        found = load_tensors(ref.path / "snapshots" / entry["file"])[KEY]
        np.testing.assert_allclose(
            found, literal(weights[: entry["updates"]], entry["sigma_rel"]), atol=2e-6, err_msg=entry["file"]
        )


def test_the_checkpoint_made_of_them(trained: tuple[Ref, np.ndarray], tmp_path: Path) -> None:
    ref, weights = trained
    outcome = average_stage(ref, AverageConfig(sigma_rel=0.15), RunContext(workdir=tmp_path), lambda done, total: None)
    made = outcome.ref
    verify_artifact(made)
    assert (made.kind, made.digest != ref.digest) == ("checkpoint", True)
    expected = literal(weights, 0.15)
    model, _ = load_model(made, "ema", torch.device("cpu"))
    found = model.state_dict()[KEY].numpy()
    assert np.abs(found - expected).mean() < 0.05 * np.abs(weights[-1] - expected).mean()
    raw, before = (load_tensors(path / "model.safetensors") for path in (made.path, ref.path))
    assert all(np.array_equal(raw[key], before[key]) for key in before)
    inputs = load_provenance(made).inputs
    assert inputs["averaged"].digest == ref.digest
    assert inputs["snapshot"] == load_provenance(ref).inputs["snapshot"]  # so that it can be evaluated
    described = Checkpoint.load(made.path)
    assert described.gates is None  # the losses were those of other weights
    assert described.average is not None
    assert described.average.sigma_rel == 0.15


def test_command(trained: tuple[Ref, np.ndarray], tmp_path: Path) -> None:
    run = CliRunner().invoke
    done = run(
        app, ["ema", trained[0].uri, "--sigma-rel", "0.1", "--updates", "12", "--workdir", str(tmp_path), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert '"kind": "checkpoint"' in done.output
    refused = run(app, ["ema", trained[0].uri, "--sigma-rel", "0.9", "--workdir", str(tmp_path)])
    assert refused.exit_code == 1
    assert "expected a width" in refused.output
    late = run(app, ["ema", trained[0].uri, "--updates", "999", "--workdir", str(tmp_path)])
    assert "after the last snapshot" in late.output


def test_a_training_without_snapshots_is_told_how(data: tuple[Ref, Ref], tmp_path: Path) -> None:
    spec = train_spec(small_config(steps=1), *data, tmp_path / "plain")
    Training(assemble(spec), spec).run(lambda: False)
    with pytest.raises(MissingArtifactError, match="ema_snapshots above 0"):
        average_stage(_commit(spec), AverageConfig(), RunContext(workdir=tmp_path), lambda done, total: None)
