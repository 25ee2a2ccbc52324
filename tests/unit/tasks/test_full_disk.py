"""A disk that is full, read-only or denied ends in one sentence with the path and what to do; what was there stays."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from flows.config import load_config
from flows.record import new_run_directory
from storage.artifacts import Ref
from storage.checkpoints import ResumeStates, load_tensors, save_tensors
from storage.documents.training_state import GROUPS
from storage.errors import UnwritableError
from storage.files import put_if_absent, write_bytes_atomic
from storage.phantom.series import write_demo_data
from storage.tracking import Tracker
from tasks.run.stage import RunContext, Stage, StageRun, run_stage
from tasks.train.launch import launch
from tests.factories import make_data, small_config, train_spec
from tests.unit.disks import fill, make_read_only, resize, small_disk, without_privileges
from tests.unit.storage.documents.examples import POSITION

FULL = r"cannot be written: no space is left\. Free some \(`prdit prune`"
READ_ONLY = r"cannot be written: its file system is read-only\. Choose another folder"
MIB = 2**20
WEIGHTS = {"w": np.ones((3 * MIB // 4,), np.float32)}  # 3 MiB


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "filler")


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2048) as disk:
        write_bytes_atomic(disk / "old", b"old")
        for name, write in {
            "old": lambda path: write_bytes_atomic(path, bytes(3 * MIB)),
            "record": lambda path: put_if_absent(path, bytes(3 * MIB)),
            "model.safetensors": lambda path: save_tensors(path, WEIGHTS),
        }.items():
            with pytest.raises(UnwritableError, match=rf"^{disk / name} {FULL}"):
                write(disk / name)
        assert names(disk) == ["old"]
        assert (disk / "old").read_bytes() == b"old"


def test_a_state_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 5 * 1024) as disk:
        states = ResumeStates(disk / "checkpoints")
        save_state(states, 1)
        with pytest.raises(UnwritableError, match=rf"^{disk}/checkpoints/step-00000002/model.safetensors {FULL}"):
            save_state(states, 2)
        assert names(disk / "checkpoints") == ["step-00000001"]
        found = states.newest_good()
        assert found is not None
        assert np.array_equal(found[1]["model"]["w"], WEIGHTS["w"])


def save_state(states: ResumeStates, step: int) -> None:
    states.save(
        POSITION.model_copy(update={"step": step}),
        {"model": WEIGHTS} | {name: {} for name in sorted(GROUPS - {"model"})},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ref, Ref]:
    return make_data(tmp_path_factory.mktemp("data"))


def test_a_training_says_so_in_its_own_words_and_resumes_once_there_is_room(
    data: tuple[Ref, Ref], tmp_path: Path
) -> None:
    config = small_config(steps=8, checkpoint_every=2)
    with small_disk(tmp_path / "disk", 64) as disk:  # enough for the metrics, not for a state
        spec = train_spec(config, *data, disk / "stage")
        run = StageRun(spec.directory, None, "", {})
        with pytest.raises(
            UnwritableError, match=rf"^{disk}/stage/work/checkpoints/step-00000002/\w+.safetensors {FULL}"
        ) as caught:
            launch(spec, run, lambda done, total: None)
        assert "\n" not in str(caught.value)
        assert names(spec.directory / "work" / "checkpoints") == []
        resize(disk, 2**20)
        ref = launch(spec, run, lambda done, total: None)
        assert load_tensors(ref.path / "model.safetensors")


@pytest.mark.parametrize("there", [True, False])
def test_a_read_only_work_folder(tmp_path: Path, there: bool) -> None:
    def stage() -> None:
        run_stage(Stage("split", "split", 1), inputs={}, config={}, context=RunContext(workdir=disk), body=body)

    def body(run: StageRun) -> None:
        (run.directory / "out").write_text("made")

    with small_disk(tmp_path / "disk", 1024) as disk:
        if there:
            stage()
        make_read_only(disk)
        for write in (
            stage,
            lambda: new_run_directory(disk, load_config("tiny", {})),
            lambda: Tracker(f"sqlite:///{disk}/mlflow.db", "prdit", tmp_path / "tracking"),
            lambda: write_demo_data(disk / "demo", num_patients=1, small=True),
        ):
            with pytest.raises(UnwritableError, match=rf"^{disk}/\S+ {READ_ONLY}"):
                write()


@pytest.mark.parametrize("kib", [0, 500])
def test_no_room_for_the_tracking_database(tmp_path: Path, kib: int) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        fill(disk, leave_kib=kib)
        with pytest.raises(UnwritableError, match=rf"^{disk}/mlflow.db {FULL}"):
            Tracker(f"sqlite:///{disk}/mlflow.db", "prdit", tmp_path / "tracking")
        assert names(disk) == []


def test_room_for_the_tracking_database_is_enough(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2200) as disk:
        assert Tracker(f"sqlite:///{disk}/mlflow.db", "prdit", tmp_path / "tracking").experiment_id


DENIED = """
    import sys
    from pathlib import Path
    from storage.errors import UnwritableError
    from storage.files import write_text_atomic
    from tasks.run.stage import RunContext, Stage, run_stage
    stage = Stage("split", "split", 1)
    root = Path(sys.argv[1])
    for write in (
        lambda: write_text_atomic(root / "text", "x"),
        lambda: run_stage(stage, inputs={}, config={}, context=RunContext(workdir=root), body=print),
    ):
        try:
            write()
        except UnwritableError as error:
            print(error)
"""


def test_a_folder_of_somebody_else(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o555)
    done = without_privileges("-c", textwrap.dedent(DENIED), str(folder))
    said = done.stdout.splitlines()
    assert len(said) == 2, done.stderr
    denied = "cannot be written: access is denied. Change its owner or permissions, or choose another folder."
    assert said[0] == f"{folder}/text {denied}"
    assert said[1].startswith(f"{folder}/split/")
    assert said[1].endswith(denied)


LIMITED = """
    import resource, sys
    from pathlib import Path
    from storage.errors import UnwritableError
    from storage.files import write_bytes_atomic
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        write_bytes_atomic(Path(sys.argv[1]), bytes(2000))
    except UnwritableError as error:
        print(error)
"""


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path / 'large'} cannot be written: it would be larger than")
    assert names(tmp_path) == []


GRID = ["-s", "ingest.spacing_mm=8", "-s", "ingest.num_levels=1", "-s", "ingest.interpolation=linear"]


def test_the_command_prints_one_line(tmp_path: Path, data: tuple[Ref, Ref]) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk:
        make_read_only(disk)
        arguments = ["train", "local", "-c", "tiny", "--store", data[0].uri, *GRID, "--workdir", str(disk / "work")]
        command = [sys.executable, "-c", "from flows.cli import main; main()", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert (done.returncode, done.stdout) == (1, "")
    assert last.startswith(f"error: {disk}/work/split/"), done.stderr
    assert "read-only" in last
    assert "Traceback" not in done.stderr
