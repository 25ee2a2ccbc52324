"""Encoded volumes beside a store: what is read back, what is not, whose they are, and that they can be deleted."""

from pathlib import Path

import numpy as np
import pytest

from storage.documents.checkpoint import Intensity, View
from storage.documents.encoded import EncodedOrigin
from storage.encoded import EncodedVolumes, encoded_folder, forget_encoded
from storage.errors import DamagedArtifactError, InputError
from storage.volume_store import VolumeStore
from tests.factories import make_store

VALUES = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)


def origin(**changes: object) -> EncodedOrigin:
    values = {
        "encoder": "sha256:" + "1" * 64,
        "weights": "raw",
        "snapshot": "sha256:" + "2" * 64,
        "view": View(size=16, edge=16, centre=None),
        "intensity": Intensity(lower_hu=-1000.0, upper_hu=1000.0, model_lower=-1.0, model_upper=1.0, mapping="window"),
        "axes": "zyx",
        "device": "cpu",
    }
    return EncodedOrigin.model_validate(values | changes)


def test_what_is_saved_is_read_back_and_anything_else_is_not(tmp_path: Path) -> None:
    kept = EncodedVolumes(tmp_path, origin())
    assert kept.load("v0") is None
    kept.save("v0", VALUES)
    np.testing.assert_array_equal(EncodedVolumes(tmp_path, origin()).load("v0"), VALUES)
    path = kept.folder / "v0.safetensors"
    path.with_name("v1.safetensors").write_bytes(path.read_bytes())
    assert kept.load("v1") is None  # sealed for v0
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert kept.load("v0") is None
    path.write_bytes(b"")
    assert kept.load("v0") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "sha256:" + "3" * 64},
        {"weights": "ema"},
        {"snapshot": "sha256:" + "3" * 64},
        {"view": View(size=16, edge=32, centre=None)},
        {"axes": "xyz"},
        {"device": "cuda"},
    ],
)
def test_another_origin_has_a_folder_of_its_own_and_refuses_this_one(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    one, other = EncodedVolumes(tmp_path, origin()), EncodedVolumes(tmp_path, origin(**changes))
    one.save("v0", VALUES)
    assert other.folder != one.folder
    assert other.load("v0") is None
    (other.folder / "v0.safetensors").write_bytes((one.folder / "v0.safetensors").read_bytes())
    assert other.load("v0") is None  # sealed for the other origin
    (other.folder / EncodedOrigin.NAME).write_bytes((one.folder / EncodedOrigin.NAME).read_bytes())
    with pytest.raises(
        InputError, match=rf"not those of this training: {next(iter(changes))} .* instead of .*; remove the"
    ):
        EncodedVolumes(tmp_path, origin(**changes))
    (one.folder / EncodedOrigin.NAME).write_text("{")
    with pytest.raises(DamagedArtifactError, match="Remove the folder"):
        EncodedVolumes(tmp_path, origin())


def test_they_are_beside_the_store_and_go_with_a_patient(tmp_path: Path) -> None:
    store = VolumeStore.open(make_store(tmp_path / "store").path)
    folder = encoded_folder(store.path, tmp_path / "stage")
    assert folder == tmp_path / "store.encoded"
    both = [EncodedVolumes(folder, origin()), EncodedVolumes(folder, origin(weights="ema"))]
    for kept in both:
        for name in ("v0", "v1"):
            kept.save(name, VALUES)
    forget_encoded(store, ["v0", "v2"])
    assert all(kept.load("v0") is None and kept.load("v1") is not None for kept in both)
    with pytest.raises(ValueError, match=r"\.\./v1"):
        forget_encoded(store, ["../v1"])


def test_where_nothing_can_be_written_beside_the_store_the_stage_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "store.encoded").write_text("a file in its place")
    assert encoded_folder(tmp_path / "store", tmp_path / "stage") == tmp_path / "stage" / "work" / "encoded"
