"""Training volumes of a store in a bucket, prepared by forked processes."""

import itertools
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch

from storage.errors import MissingArtifactError
from storage.places import as_place
from tasks.train.loader import Loaded, Loader, Order
from tests.s3 import BUCKET, s3_server
from tests.unit.tasks.loader_data import dataset, write_store


def batches(store: Path, num_workers: int, number: int) -> list[Loaded]:
    data = dataset(store)
    loader = Loader(data, Order(len(data), 2, seed=3), lambda turn, generator: {}, 1, num_workers, pin=False)
    with closing(loader.batches(0)) as found:  # type: ignore[type-var]
        return list(itertools.islice(found, number))


@pytest.mark.timeout(300)
def test_forked_workers_read_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("PRDIT_CACHE", str(cache))
    with s3_server():
        store = write_store(as_place(f"s3://{BUCKET}/store"))
        expected = batches(store, 0, 4)
        shutil.rmtree(cache)  # so that the workers must ask the server
        found = batches(store, 2, 4)
        assert len(list((cache / "levels").iterdir())) == 5
        assert [one.indices for one in found] == [one.indices for one in expected]
        assert all(torch.equal(one.volumes, other.volumes) for one, other in zip(found, expected, strict=True))
        shutil.rmtree(cache)
        (store / "volumes").delete_below()
        with pytest.raises(MissingArtifactError, match=r"s3://scans/store/volumes/v\d-.* is missing.*--repair"):
            batches(store, 1, 4)
