"""OME-Zarr copies: another reader's voxels and places, the mark of generated volumes, and bytes that are checked."""

import json
from pathlib import Path

import ngff_zarr
import numpy as np
import pytest

from storage.errors import DamagedArtifactError, InputError
from storage.exports.ome_zarr import export_ome_zarr
from storage.exports.origin import Origin, origin_of
from storage.volume_store import VolumeStore
from tests.exported import GENERATED, MARK, SCAN, sample_store, scan_store


def origin(store: VolumeStore, level: int = 0) -> Origin:
    return origin_of(store, store.volume_ids()[0], level, None)


def test_another_reader_sees_every_level(tmp_path: Path) -> None:
    store = scan_store(tmp_path / "store")
    export_ome_zarr(tmp_path / "a.ome.zarr", store, origin(store), lambda: None)
    images = ngff_zarr.from_ngff_zarr(str(tmp_path / "a.ome.zarr"), validate=True).images
    assert len(images) == 2
    for level, image in enumerate(images):
        mine = store.read_level(SCAN, level)
        np.testing.assert_array_equal(np.asarray(image.data), mine.hu)
        np.testing.assert_allclose([image.scale[a] for a in "xyz"], mine.spacing_mm, atol=1e-4)
        np.testing.assert_allclose([image.translation[a] for a in "xyz"], mine.origin_mm, atol=1e-4)


def test_a_copy_of_a_generated_volume_says_so(tmp_path: Path) -> None:
    store = sample_store(tmp_path / "samples.zarr")
    export_ome_zarr(tmp_path / "a.ome.zarr", store, origin(store), lambda: None)
    prdit = json.loads((tmp_path / "a.ome.zarr" / "zarr.json").read_text())["attributes"]["prdit"]
    assert prdit["volume_id"] == GENERATED
    assert prdit["synthetic"]["checkpoint"] == MARK.checkpoint
    assert "not a scan of a person" in prdit["made"]
    scans = scan_store(tmp_path / "store")
    export_ome_zarr(tmp_path / "b.ome.zarr", scans, origin(scans), lambda: None)
    assert "synthetic" not in json.loads((tmp_path / "b.ome.zarr" / "zarr.json").read_text())["attributes"]["prdit"]


def test_a_damaged_file_is_not_passed_on(tmp_path: Path) -> None:
    store = scan_store(tmp_path / "store")
    shard = next(p for p in (store.folder(SCAN) / "0").rglob("*") if p.is_file() and p.name != "zarr.json")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedArtifactError, match="other bytes than were committed"):
        export_ome_zarr(tmp_path / "a.ome.zarr", store, origin(store), lambda: None)


def test_a_copy_has_all_levels(tmp_path: Path) -> None:
    store = scan_store(tmp_path / "store")
    with pytest.raises(InputError, match="every level; got --level 1"):
        export_ome_zarr(tmp_path / "a.ome.zarr", store, origin(store, 1), lambda: None)
