"""Checkpoints of a working folder, registered in MLflow, for tests of the registered model and of decisions about it."""

from pathlib import Path

from storage.artifacts import Ref, commit_artifact
from storage.documents.split import Split
from storage.registry import Registry
from tests.factories import make_data
from tests.unit.tasks.checkpoints import commit_checkpoint, tiny_model


class Lab:
    """A working folder with a store, a split and checkpoints, and the registered model of one MLflow.

    Args:
        root: folder of the test.
        uri: of MLflow.
    """

    def __init__(self, root: Path, uri: str) -> None:
        self.root, self.uri = root, uri
        self.workdir, self.decisions = root / "work", root / "work" / "decisions"
        self.snapshot, _ = make_data(root / "DOE^JOHN")
        roles, patients = {"train": ["v0", "v1"], "val": ["v2"]}, {"train": ["p0", "p1"], "val": ["p2"]}
        Split(roles=roles, patients=patients, notes=[]).save(root / "split")
        inputs = {"snapshot": self.snapshot}
        self.split = commit_artifact(root / "split", "split", stage="split", recipe=1, inputs=inputs, config={})
        self.registry = Registry(uri, root.name, workdir=self.workdir)

    def checkpoint(self, number: int) -> Ref:
        """A checkpoint of a training of its own, where a stage would leave it."""
        folder = self.workdir / "train-local" / f"{number:032x}"
        inputs = {"snapshot": self.snapshot, "split": self.split}
        return commit_checkpoint(folder, "network", inputs, model=tiny_model(number), metrics='{"step": 1}\n')

    def register(self, number: int, **tags: str) -> int:
        """The version of such a checkpoint."""
        return self.registry.register(self.checkpoint(number), "", tags).version
