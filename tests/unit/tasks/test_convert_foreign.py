"""Reading checkpoint files of others: what is accepted, and everything that is refused before it does harm."""

import argparse
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.convert.foreign import read_foreign
from tests.unit.tasks.foreign_files import TINY, published, repack, save, weights

A, B = "t_embedder.mlp.0.weight", "coarse.mlp_denoise.linear_final.weight"


class Calls:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_a_published_file_is_read_as_it_is(tmp_path: Path) -> None:
    content = published(TINY, optimizer={"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}})
    content["config"] = argparse.Namespace(model="PRDiT-custom", data={"image_size": 8, "normalize": True})
    found = read_foreign(save(tmp_path / "a.pt", content))
    assert (found.step, found.epoch, found.missing) == (130000, 7, "")
    assert found.numbers("image_size", "normalize") == [8]  # True is not the number 1
    assert dict(found.settings())["model"] == "PRDiT-custom"
    for name, state in (("model", found.model), ("ema", found.ema)):
        assert list(state) == list(content[name])
        assert all(torch.equal(state[key], value) for key, value in content[name].items())


@pytest.mark.parametrize("absent", ["model", "ema"])
def test_one_set_of_weights_stands_in_for_the_other(tmp_path: Path, absent: str) -> None:
    content = published(TINY)
    kept = content["ema" if absent == "model" else "model"]
    del content[absent]
    found = read_foreign(save(tmp_path / "a.pt", content))
    assert found.missing == absent
    assert torch.equal(found.model[A], kept[A])
    assert torch.equal(found.ema[A], kept[A])


def test_bare_state_dicts_and_data_parallel_prefixes(tmp_path: Path) -> None:
    state = weights(TINY)
    found = read_foreign(save(tmp_path / "a.pt", {f"module.{key}": value for key, value in state.items()}))
    assert found.ema.keys() == state.keys()
    assert torch.equal(found.ema[B], state[B])
    assert (found.config, found.step, found.missing) == ({}, 0, "ema")
    with pytest.raises(ValueError, match=r"'x' under 'model' both with and without 'module.'"):
        read_foreign(save(tmp_path / "b.pt", {"x": torch.zeros(2), "module.x": torch.ones(2)}))


def test_weights_stay_on_disk(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", published(TINY))
    tensor = read_foreign(path).ema[A]
    start = tensor.data_ptr()
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines if str(path) in line]
    assert any(low <= start < high for low, high in spans)


def test_code_in_a_file_is_named_and_never_run(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    path = save(tmp_path / "a.pt", published(TINY, config=Calls(os.system, f"touch {proof}")))
    with pytest.raises(ValueError, match=r"not loaded, \['posix.system'\].*torch.save\(.*--variant and --volume-size"):
        read_foreign(path)
    assert not proof.exists()


def test_every_foreign_object_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", published(TINY, epoch=np.float64(1.0), config={"where": Path("/data")}))
    with pytest.raises(ValueError, match=r"_codecs.encode', 'numpy._core.multiarray.scalar', 'numpy.dtype', 'pathlib"):
        read_foreign(path)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(bytearray, 10**12), "bytearray"),  # torch's own reader would allocate it
        (Calls(torch.FloatTensor, 10**12), "torch.FloatTensor"),
        (torch.empty(10**6, 10**6, device="meta"), "meta_tensor"),
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_what_would_allocate_is_refused_unbuilt(tmp_path: Path, value: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"not loaded, \[.*{name}"):
        read_foreign(save(tmp_path / "a.pt", {"model": {"a": value}}))


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    good = save(tmp_path / "good.pt", published(TINY))
    for name, data in (("empty", b""), ("text", b"weights"), ("cut", good.read_bytes()[:-5000])):
        path = tmp_path / f"{name}.pt"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"is not a PyTorch checkpoint archive.*fetched again"):
            read_foreign(path)
    old = tmp_path / "old.pt"
    torch.save({"model": weights(TINY)}, old, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"older than PyTorch 1\.6"):
        read_foreign(old)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a.txt", "no weights")
    with pytest.raises(ValueError, match=r"no data\.pkl.*Give the published"):
        read_foreign(tmp_path / "zip.pt")
    with pytest.raises(FileNotFoundError, match=r"absent\.pt does not exist; expected"):
        read_foreign(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="is a folder; expected"):
        read_foreign(tmp_path)


def test_archives_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    good = save(tmp_path / "good.pt", {"model": {"a": torch.zeros(1 << 18)}})
    bomb = repack(good, tmp_path / "bomb.pt", compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < good.stat().st_size / 100
    with pytest.raises(ValueError, match=r"claims 10\d+ bytes in a file of \d+ \(compressed entries"):
        read_foreign(bomb)
    with pytest.warns(UserWarning, match="Duplicate name"):
        double = repack(good, tmp_path / "double.pt", extra=(("good/data.pkl", b"\x80\x02}."),))
    with pytest.raises(ValueError, match=r"several entries of one name, \['good/data.pkl'\]"):
        read_foreign(double)
    short = repack(good, tmp_path / "short.pt", lambda name, data: data[:64] if name.endswith("/data/0") else data)
    with pytest.raises(ValueError, match="cannot be read as a PyTorch checkpoint"):
        read_foreign(short)


def test_flipped_bytes_and_broken_pickles(tmp_path: Path) -> None:
    good = save(tmp_path / "good.pt", {"model": {"a": torch.full((1 << 16,), 3.0)}})
    data = bytearray(good.read_bytes())
    data[len(data) // 2] ^= 1  # a finite number, another one
    flipped = tmp_path / "flipped.pt"
    flipped.write_bytes(data)
    with pytest.raises(ValueError, match=r"good/data/0.*checksum.*Fetch it again"):
        read_foreign(flipped)
    for number, pickled in enumerate((b"", b"\x80\x02", b"garbage", b"\x80\x02.", b"\x80\x02K\x01K\x02s.")):
        broken = repack(
            good, tmp_path / f"{number}.pt", lambda name, old, new=pickled: new if name.endswith("data.pkl") else old
        )
        with pytest.raises(ValueError, match="cannot be read as a PyTorch checkpoint"):
            read_foreign(broken)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a": torch.zeros(3, dtype=torch.int64)}, r"not of a type that float32 holds exactly.*a \(torch.int64\)"),
        ({"a": torch.zeros(3, dtype=torch.float64)}, r"not of a type.*a \(torch.float64\)"),
        (
            {"a": torch.zeros(1).expand(10**9)},
            r"views of fewer bytes than their shape needs.*: a\. Nothing was imported",
        ),
        ({"a": torch.zeros(4, 3).t()}, r"not contiguous: a"),
        ({"a": torch.zeros(3), "b": 3, "c": [1]}, r"not plain tensors: b, c"),
        ({f"k{i}": torch.zeros(1) for i in range(5000)}, r"has 5000 weights under 'model'.*at most 4096"),
    ],
)
def test_weights_that_are_no_plain_numbers(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_foreign(save(tmp_path / "a.pt", {"model": bad}))


def test_all_offending_tensors_are_listed(tmp_path: Path) -> None:
    bad = {f"k{i:02d}": torch.zeros(2, dtype=torch.int32) for i in range(30)}
    with pytest.raises(ValueError, match="that float32 holds exactly") as caught:
        read_foreign(save(tmp_path / "a.pt", {"ema": bad}))
    assert all(key in str(caught.value) for key in bad)


def test_many_names_for_the_same_bytes(tmp_path: Path) -> None:
    one = torch.zeros(10000)
    with pytest.raises(ValueError, match=r"under 'model' have 4000000 bytes in a file of \d+: they share data"):
        read_foreign(save(tmp_path / "a.pt", {"model": {f"k{i}": one for i in range(100)}}))


def test_settings_nested_in_themselves(tmp_path: Path) -> None:
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    laughs: dict[str, Any] = {"a": 1}
    for _ in range(18):
        laughs = dict.fromkeys("abcdefghij", laughs)  # 10^18 entries, 18 dictionaries
    for config in (ring, laughs):
        with pytest.raises(ValueError, match="nested in itself"):
            read_foreign(save(tmp_path / "a.pt", published(TINY, config=config)))


@pytest.mark.parametrize("value", ["many", 1.5, True, -1, None])
def test_steps_are_a_whole_number(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match=r"train_steps is .*; expected a whole number"):
        read_foreign(save(tmp_path / "a.pt", published(TINY, train_steps=value)))


def test_a_value_that_is_huge_when_written_out_is_named_in_short(tmp_path: Path) -> None:
    nested: list[Any] = ["x"] * 10
    for _ in range(5):
        nested = [nested] * 10  # a million leaves in a few bytes
    with pytest.raises(ValueError, match="expected a whole number") as refused:
        read_foreign(save(tmp_path / "a.pt", published(TINY, train_steps=nested)))
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("content", [[1], {}, {"model": {}}, {"ema": {}, "config": {}}])
def test_files_without_weights(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match=r"holds (no weights|a list)"):
        read_foreign(save(tmp_path / "a.pt", content))
