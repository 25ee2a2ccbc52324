"""A year without a keeper, in small: phantoms arrive in the inbox of real services, and what works on them is killed meanwhile.

`python -m tests.drills.keeper [ROUNDS] [sqlite|postgresql]`: one JSON object on stdout. `prdit up` in an empty folder; scans
arrive, events run the retraining, and at a random moment one process gets SIGKILL: worker, flow, a rank of the training,
Prefect's server, MLflow's server, or the watcher; ROUNDS times each. Then the state has to converge by itself: nobody starts
anything but the night's run, which is started early where it would have been needed.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from flows import services as local
from flows.servers import ServiceError, Services
from storage.errors import StorageError
from storage.inbox_ledger import Batch, Ledger
from storage.phantom.series import write_demo_data
from storage.registry import Registry
from storage.snapshots import load_snapshot, newest
from storage.tracking import TrackingUnavailableError
from storage.volume_store import VolumeStore
from tasks.retrain.decisions import decisions
from tasks.retrain.rounds import Rounds
from tests.drills.deployed import OVER, Deployed, until
from tests.parity.location import REPOSITORY
from tests.postgres import postgres_server
from tests.processes import descendants
from tests.retraining import POLICY

KINDS = ("worker", "flow", "training", "prefect", "mlflow", "watcher")
FIRST = 6  # patients before the first kill: a champion is there
_NIGHT_S = 60.0  # nothing has run for so long and scans or a retraining are left: what the night's run is for
_PATIENCE_S = 1200.0  # a run whose process died is noticed after minutes, and holds the queue until then
_LATEST_S = 30.0
_FAR_AWAY = 10_000


def run(root: Path, rounds: int, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    """Kill each kind so often; what was there at the end, and seconds until each kill was overcome.

    Args:
        root: an empty folder.
        rounds: kills of each kind.
        kinds: names of `KINDS`.
    Raises: AssertionError: a series is lost or in two batches, a challenger is without decision or has two, a service is not back.
    """
    chance = random.Random(rounds)
    with installation(root, FIRST + rounds * len(kinds), POLICY) as place:
        place.arrive(FIRST)
        place.await_quiet()
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for kind in [kind for _ in range(rounds) for kind in chance.sample(kinds, len(kinds))]:
            found[kind].append(place.kill_while_scans_arrive(kind, chance.uniform(0.0, _LATEST_S)))
        return {"rounds": rounds, "kills": found, **place.found()}


def smallest(root: Path) -> dict[str, Any]:
    """One kill, of the watcher, where the policy waits for more scans than arrive."""
    with installation(root, 2, POLICY | {"min_new_volumes": _FAR_AWAY}) as place:
        place.trains = False
        return {"watcher": place.kill_while_scans_arrive("watcher", 0.0), **place.found()}


class Place:
    """An installation that is up, and phantoms that have not arrived yet.

    Args:
        root: the folder that `prdit up` was called in; the current one, as its settings are relative to it.
        services: its servers.
    Attributes:
        trains: whether arrivals lead to a retraining.
        nights: how often the night's run was needed.
        released: how often the drift gate held a batch that a person then released: a phantom looks unlike the few before it.
    """

    def __init__(self, root: Path, services: Services) -> None:
        self.root, self.services = root, services
        self.site = Deployed(root, services)
        self.trains, self.nights, self.released, self.num_arrived = True, 0, 0, 0

    # ---- what happens ------------------------------------------------------------------------------------------------

    def arrive(self, count: int) -> None:
        """Copy the next series into the inbox, file by file."""
        for series in sorted(path for path in (self.root / "all").iterdir() if path.is_dir())[:count]:
            for file in sorted(path for path in series.rglob("*") if path.is_file()):
                target = self.root / ".prdit" / "inbox" / file.relative_to(self.root / "all")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
            shutil.rmtree(series)
            self.num_arrived += 1

    def kill_while_scans_arrive(self, kind: str, wait_s: float) -> dict[str, Any]:
        """One scan arrives, one process is killed: whom it hit and how long it took until all was as it should be."""
        before, nights = self.site.pid(kind) if kind not in ("flow", "training") else 0, self.nights
        self.arrive(1 if self.trains else 2)
        deadline = time.monotonic() + _PATIENCE_S
        hit = False
        while not hit:  # a run without anything to do may end before it is killed; that of this scan is still to come
            assert time.monotonic() < deadline, f"nothing to kill: {kind}"
            if kind in ("flow", "training"):
                until(lambda: self.victims(kind), _PATIENCE_S)
            time.sleep(min(wait_s, 5.0) if kind in ("flow", "training") else wait_s)
            with suppress(psutil.NoSuchProcess, IndexError):
                self.victims(kind)[-1].kill()
                hit = True
        began = time.monotonic()
        if before:
            until(lambda: self.site.pid(kind) != before)
        self.await_quiet()
        return {"quiet_s": round(time.monotonic() - began, 1), "nights": self.nights - nights}

    def victims(self, kind: str) -> list[psutil.Process]:
        """Who is killed: the last of them."""
        if kind in ("flow", "training"):
            word = {"flow": "prefect.engine", "training": "tasks.train "}[kind]
            return descendants(self.site.pid("worker"), word)
        with suppress(psutil.NoSuchProcess):
            return [psutil.Process(self.site.pid(kind))]
        return []

    # ---- what has to be ----------------------------------------------------------------------------------------------

    def await_quiet(self) -> None:
        """Everything that arrived is listed, every challenger judged, and all services are up."""
        deadline, idle_since = time.monotonic() + _PATIENCE_S, time.monotonic()
        while left := self.left():
            assert time.monotonic() < deadline, f"after {_PATIENCE_S:.0f} s: {left}"
            self._release()
            if self.busy():
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > _NIGHT_S:
                self._night()
                idle_since = time.monotonic()
            time.sleep(1.0)

    def left(self) -> str:
        """What is not as it should be yet; "" when all is."""
        try:
            batches = self.batches()
            listed = sum(batch.num_series for batch in batches if batch.state == "listed")
            if listed < self.num_arrived:
                return f"{listed} of {self.num_arrived} series are listed; batches {[b.state for b in batches]}"
            if self.trains:
                last = Rounds(self.work).newest()
                if last is None or not last.outcome or last.snapshot != newest(VolumeStore.open(self.store)).digest:
                    return f"no retraining with the newest snapshot has ended: {last}"
            if self.busy():
                return "a run is under way"
            return "" if local.running(self.services.state_dir) == self.services else "a service is not up"
        except (ServiceError, StorageError, TrackingUnavailableError) as error:
            return str(error)

    def busy(self) -> bool:
        """Whether a run works, or is to work now."""
        return not self.site.free() or bool(self.site.runs(name=["Late", "AwaitingRetry", "AwaitingConcurrencySlot"]))

    def _release(self) -> None:
        """What a person does about batches that the drift gate holds."""
        with suppress(StorageError), closing(Ledger(self.root / ".prdit" / "arrivals")) as ledger:
            for batch in ledger.batches():
                if batch.state == "held":
                    ledger.release(batch.number)
                    self.released += 1

    def _night(self) -> None:
        """The night's run, early."""
        run_id = self.site.schedule("retrain/nightly")
        self.nights += 1
        until(lambda: self.site.state(run_id) in (*OVER, "RUNNING"), _PATIENCE_S)

    def found(self) -> dict[str, Any]:
        """Figures at the end. Raises: AssertionError: something is twice or lost."""
        batches = self.batches()
        assert {batch.state for batch in batches} == {"listed"}
        volumes = [volume for batch in batches for volume in batch.volumes]
        assert sum(batch.num_series for batch in batches) == self.num_arrived, "a series is in no batch, or in two"
        assert len(set(volumes)) == len(volumes) == self.num_arrived, "a volume is of two batches, or of none"
        snapshot = load_snapshot(newest(VolumeStore.open(self.store)))
        assert set(snapshot.volumes) == set(volumes), "the snapshot lists something else than the batches"
        made = decisions(self.work / "decisions")
        judged = Counter(decision.challenger for decision in made)
        versions = Registry(self.services.mlflow_url, workdir=self.work).versions()
        assert set(judged.values()) <= {1}, f"decisions by challenger: {judged}"
        assert set(judged) == {version.version for version in versions}, "a version without decision, or the other way"
        digests = [version.checkpoint.digest for version in versions]
        assert len(set(digests)) == len(digests), "a checkpoint was registered twice"
        champions = [version.version for version in versions if "champion" in version.aliases]
        if made:
            assert champions == [made[-1].champion], "the alias is another one than the last decision's"
        return {
            "series": self.num_arrived,
            "batches": len(batches),
            "decisions": dict(Counter(decision.action for decision in made)),
            "nights": self.nights,
            "released": self.released,
        }

    def batches(self) -> list[Batch]:
        """Batches of the inbox."""
        with closing(Ledger(self.root / ".prdit" / "arrivals")) as ledger:
            return ledger.batches()

    @property
    def store(self) -> Path:
        return self.root / ".prdit" / "store"

    @property
    def work(self) -> Path:
        return self.root / ".prdit" / "work"


@contextmanager
def installation(root: Path, num_patients: int, policy: dict[str, Any]) -> Iterator[Place]:
    """`prdit up` in a folder, with the configuration tiny and a short quiet period; `prdit down` at the end."""
    root = root.resolve()
    write_demo_data(root / "all", num_patients=num_patients, small=True)
    (root / ".prdit" / "inbox").mkdir(parents=True)
    (root / "policy.yaml").write_text(yaml.safe_dump(policy))
    training = {"steps": 12, "val_every": 6, "checkpoint_every": 4}
    site = {
        "configuration": "tiny",
        "policy": str(root / "policy.yaml"),
        "inbox": {"quiet_s": 3.0},
        "overrides": {
            "workdir": ".prdit/work",
            "split": {"val_fraction": 0.5},
            "recipe": {"local": training, "global": training},
        },
    }
    (root / ".prdit" / "site.yaml").write_text(yaml.safe_dump(site))
    before = Path.cwd()
    os.chdir(root)
    try:
        services = Services.model_validate_json(_prdit("up", "--json").splitlines()[-1])
        yield Place(root, services)
    finally:
        _prdit("down")
        os.chdir(before)


def _prdit(*words: str) -> str:
    """What a command prints. Raises: AssertionError: it failed."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def main() -> None:
    """Run the drill and print what was found."""
    rounds, database = (*sys.argv[1:], *("5", "sqlite")[len(sys.argv) - 1 :])
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if database == "postgresql":
            os.environ["PRDIT_DATABASE"] = stack.enter_context(postgres_server()).address()
        found = run(Path(folder), int(rounds))
    sys.stdout.write(json.dumps({"database": database} | found) + "\n")


if __name__ == "__main__":
    main()
