"""The lock of a store in a bucket: one holder, whose death is seen on its machine and named on others."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.bucket_lock import locked_in_bucket
from storage.bucket_path import BucketPath
from storage.errors import LockedError
from storage.lease import own_lease
from storage.places import as_place
from tests.s3 import BUCKET, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def place(server: str, tmp_path: Path) -> BucketPath:
    found = as_place(f"s3://{BUCKET}/{tmp_path.name}/forget.lock")
    assert isinstance(found, BucketPath)
    return found


def test_one_holder_at_a_time(place: BucketPath) -> None:
    for _ in range(2):
        refused = pytest.raises(LockedError, match=r"Process \d+ on .* delete the object s3://scans/.*/forget.lock/")
        with locked_in_bucket(place, timeout_s=0), refused, locked_in_bucket(place, timeout_s=0):
            pass
    assert len(list(place.iterdir())) == 1


def test_a_killed_holder_is_replaced(place: BucketPath) -> None:
    code = (
        "import os, sys; from storage.places import as_place; from storage.bucket_lock import locked_in_bucket\n"
        "with locked_in_bucket(as_place(sys.argv[1]), timeout_s=0): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(place)], check=False).returncode == 9
    assert len(list(place.iterdir())) == 1
    with locked_in_bucket(place, timeout_s=0):
        pass


def test_a_holder_elsewhere_is_named(place: BucketPath) -> None:
    lease = own_lease(released=False).model_copy(update={"machine": "0" * 8, "host": "gpu-7", "pid": 11})
    assert lease.put(place / "00000001.json")
    with pytest.raises(LockedError, match="Process 11 on gpu-7 works on"), locked_in_bucket(place, timeout_s=0):
        pass
    (place / "00000001.json").unlink()
    with locked_in_bucket(place, timeout_s=0):
        pass
