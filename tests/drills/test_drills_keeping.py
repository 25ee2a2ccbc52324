"""Drills of what runs by itself, once each at their smallest: arrivals, retraining, lost processes, a year, forgotten patients."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills import arrivals, forgetting, keeper, queue, retraining, year, zombies
from tests.drills.deployed import Deployed, deployed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("deployed")) as found:
        yield found


@pytest.mark.e2e
def test_queue(site: Deployed) -> None:
    found = queue.at_once(site, 2)
    assert (found["deployments"], found["complete"]) == (2, 2)


@pytest.mark.e2e
def test_zombies(site: Deployed) -> None:
    [found] = zombies.smallest(site)["flow"]
    assert found["crashed_s"] < zombies.LIMIT_S
    assert found["next_complete_s"] > found["crashed_s"]


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_keeper(tmp_path: Path) -> None:
    found = keeper.smallest(tmp_path)
    assert found["watcher"]["quiet_s"] > 0
    assert (found["series"], found["decisions"]) == (2, {})


@pytest.mark.timeout(900)
def test_retraining(tmp_path: Path) -> None:
    found = retraining.run(tmp_path, rounds=0, poison=("200 HU",))
    assert (found["champion"], found["decisions"]) == (1, 1)
    assert "HU" in found["poisoned"][0]


def test_arrivals(tmp_path: Path) -> None:
    found = arrivals.run(tmp_path, rounds=2, num_series=30)
    assert found["listed_series_in_exactly_one_batch"] == 21
    assert found["batches"] >= 2
    assert sum(found["killed"].values()) == 2


def test_forgetting(tmp_path: Path) -> None:
    found = forgetting.run(tmp_path, rounds=1)
    assert len(found["killed_before_line"]) == 1
    assert min(found["files_with_traces_before"].values()) > 0
    (left,) = found["left"]
    assert left.startswith("store/tombstones/")


def test_year(tmp_path: Path) -> None:
    found = year.run(tmp_path, weeks=20, servers=False)
    assert found["bounded"]["run_records"]["end"] <= 6
    assert found["grows_bytes_per_week"]["decision_bytes"] < 2000
