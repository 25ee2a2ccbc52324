"""Which network a foreign file holds: stated by the file or the user, never guessed."""

import logging
from typing import Any

import pytest
import torch

from prdit_models.networks.build import build_network
from prdit_models.networks.config import ModelConfig, model_config
from tasks.convert.foreign import ForeignCheckpoint
from tasks.convert.recognise import Recognised, recognise
from tests.unit.tasks.foreign_files import FLOW, LOCAL, NETWORKS, REFINED, TF, TINY, weights


def shapes(network: Any) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return dict(build_network(network).state_dict())


def found(state: dict[str, torch.Tensor], config: dict[str, Any] | None = None, **given: Any) -> Recognised:
    foreign = ForeignCheckpoint(model=state, ema=state, missing="", config=config or {})
    return recognise(foreign, **({"variant": None, "volume_size": None, "num_heads": None} | given))


def named(name: str, size: int = 8, heads: int = 4, **more: Any) -> dict[str, Any]:
    return {"model": {"name": name, "input_size": size, "num_heads": heads}} | more


@pytest.mark.parametrize("variant", ["prdit", "fm", "tf", "sr"])
def test_every_variant_by_what_the_user_says(variant: str) -> None:
    network = NETWORKS[variant]
    result = found(shapes(network), variant=variant, volume_size=network.volume_size, num_heads=4)
    assert (result.variant, result.network, result.name) == (variant, network, "")


@pytest.mark.parametrize(
    ("network", "name", "variant"),
    [
        (TINY, "PRDiT-custom", "prdit"),
        (LOCAL, "PRDiT-custom", "prdit"),
        (TF, "DiT-custom", "tf"),
        (FLOW, "PRDiT-custom", "fm"),
        (FLOW, "PRDiT-FM-custom", "fm"),
        (REFINED, "PRDiT-custom", "sr"),
        (REFINED, "PRDiT-SR-custom", "sr"),
    ],
)
def test_every_variant_by_the_stored_name(network: Any, name: str, variant: str) -> None:
    heads = 1 if network is LOCAL else 4
    result = found(shapes(network), named(name, heads=heads, data={"target_size": 16}))
    assert (result.variant, result.network, result.name) == (variant, network, name)


def test_the_published_name_of_a_model_without_overlap() -> None:
    network = model_config("B/16/12-s16", 256, out_channels=1)
    result = found(shapes(network), named("PRDiT-B/16/12-s16", size=256, heads=12))
    assert (result.variant, result.network, result.name) == ("fm", network, "PRDiT-B/16/12-s16")


@pytest.mark.parametrize(
    ("name", "size"), [("PRDiT-B/12/4", 32), ("DiT-B/12/12", 16), ("PRDiT-XS/4/0", 8), ("PRDiT-XL/16/1", 16)]
)
def test_published_names(name: str, size: int) -> None:
    preset = name.split("-")[1]
    arithmetic = "tf" if name.startswith("DiT") else "prdit"
    network = model_config(preset, size, arithmetic=arithmetic)
    result = found(shapes(network), {"model": name, "data": {"image_size": size}})
    assert result.network == network
    bare = found(shapes(network), variant="tf" if arithmetic == "tf" else "prdit", volume_size=size)
    assert bare.network == network or network.depth == 0  # heads of a published width are known


@pytest.mark.parametrize("network", [TINY, LOCAL, TF, FLOW])
def test_without_a_name_nothing_is_guessed(network: ModelConfig) -> None:
    with pytest.raises(
        ValueError, match=r"does not state which model.*other arithmetic.*Give --variant prdit, fm or tf"
    ):
        found(shapes(network), {"data": {"image_size": 8}}, num_heads=4)


@pytest.mark.parametrize(
    ("network", "name", "given", "message"),
    [
        (TINY, "PRDiT-custom", "tf", r"--variant tf contradicts.*'PRDiT-custom'.*means 'prdit'\. Leave --variant out"),
        (TF, "DiT-custom", "prdit", r"--variant prdit contradicts.*'DiT-custom'.*means 'tf'"),
        (TINY, "PRDiT-custom", "fm", r"--variant fm contradicts"),
        (TINY, "PRDiT-FM-custom", None, r"'fm' has one output channel; these weights have 2"),
        (FLOW, "DiT-custom", None, r"'tf' has two output channels; these weights have 1.*--variant fm"),
        (FLOW, "", "prdit", r"'prdit' has two output channels; these weights have 1.*--variant fm"),
        (TINY, "", "fm", r"'fm' has one output channel; these weights have 2"),
        (TINY, "", "sr", r"'sr' \(--variant\) needs weights of a base model under 'base\.'"),
        (TINY, "PRDiT-SR-custom", None, r"'sr' \(model name .*\) needs weights of a base"),
        (REFINED, "", "tf", r"--variant tf contradicts the file, whose keys \('base\.'\) means? 'sr'"),
        (REFINED, "DiT-custom", None, r"contradicts itself.*DiT-custom.*keys a refinement.*\['sr', 'tf'\]"),
        (TINY, "", "vae", r"Unknown variant 'vae'; expected one of \['prdit', 'fm', 'sr', 'tf'\]"),
    ],
)
def test_contradictions_are_refused(network: Any, name: str, given: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(shapes(network), named(name), variant=given, volume_size=network.volume_size)


def test_two_names_of_different_arithmetic() -> None:
    config = named("PRDiT-custom", pretrained={"name": "DiT-B/12/12"})
    with pytest.raises(ValueError, match=r"contradicts itself.*\['PRDiT-custom', 'DiT-B/12/12'\].*\['prdit', 'tf'\]"):
        found(shapes(TINY), config)


def test_the_name_of_a_run_is_not_the_name_of_a_model() -> None:
    config = {"wandb": "PRDiT-lr1e-4", "out": "DiT-baseline", "image_size": 8, "num_heads": 4}
    with pytest.raises(ValueError, match=r"does not state which model.*Give --variant"):
        found(shapes(TINY), config)
    assert found(shapes(TF), config | {"model": "DiT-custom"}).variant == "tf"


def test_a_published_name_must_fit_the_weights() -> None:
    state = shapes(model_config("XS/10/1", 16))
    with pytest.raises(
        ValueError, match=r"'PRDiT-XS/12/2' and its weights.*patch_size \(12 by name, 10 by shape\).*depth"
    ):
        found(state, {"model": "PRDiT-XS/12/2", "image_size": 16})
    with pytest.raises(ValueError, match=r"XS/4/1"):  # registered, but cannot run as published
        found(shapes(TINY), {"model": "PRDiT-XS/4/1", "image_size": 8})


def test_volume_size_is_known_or_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    state = shapes(TINY)
    with pytest.raises(ValueError, match=r"does not state the volume size.*give --volume-size"):
        found(state, {"model": "PRDiT-custom"}, num_heads=4)
    both = named("PRDiT-custom", data={"image_size": 16})
    with pytest.raises(ValueError, match=r"several volume sizes, \[8, 16\]; give --volume-size"):
        found(state, both)
    assert found(state, both, volume_size=16).network.volume_size == 16
    with caplog.at_level(logging.WARNING, logger="prdit.convert"):
        assert found(state, named("PRDiT-custom"), volume_size=12).network.volume_size == 12
    assert "trained at volume size [8], imported for 12" in caplog.text
    with pytest.raises(ValueError, match="Volume size 100000: expected 1 to 1024"):
        found(state, named("PRDiT-custom", size=100000))
    with pytest.raises(ValueError, match="does not state the volume size"):  # the base's size is not the refinement's
        found(shapes(REFINED), named("PRDiT-custom"))
    with pytest.raises(ValueError, match="15 is odd"):
        found(shapes(REFINED), named("PRDiT-custom"), volume_size=15)


def test_heads_are_known_or_asked_for() -> None:
    state = shapes(TINY)
    config = {"model": "PRDiT-custom", "image_size": 8}
    with pytest.raises(ValueError, match=r"Width 48 is not a published one.*give --num-heads"):
        found(state, config)
    assert found(state, config, num_heads=2).network == ModelConfig(8, 4, 2, 1, 48, 2, 2)
    with pytest.raises(ValueError, match=r"heads is contradictory.*\[4\].*--num-heads is 2.*leave --num-heads out"):
        found(state, named("PRDiT-custom"), num_heads=2)


def test_shapes_that_are_no_prdit() -> None:
    with pytest.raises(ValueError, match=r"not weights of a PRDiT: no matrix \['t_embedder.mlp.0.weight'"):
        found({"conv.weight": torch.zeros(3, 3)}, variant="prdit", volume_size=8)
    state = weights(TINY)
    state["coarse.mlp_denoise.linear_final.weight"] = torch.zeros(17, 64)
    with pytest.raises(ValueError, match=r"shape \(17, 64\); expected \(s³·O, p³\)"):
        found(state, variant="prdit", volume_size=8, num_heads=4)
    state["coarse.mlp_denoise.linear_final.weight"] = torch.zeros(0, 0)
    with pytest.raises(ValueError, match=r"shape \(0, 0\)"):
        found(state, variant="prdit", volume_size=8, num_heads=4)
