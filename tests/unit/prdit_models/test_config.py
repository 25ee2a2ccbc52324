import pytest

from prdit_models.networks.config import ModelConfig, model_config, preset_names

TINY = {"volume_size": 8, "patch_size": 4, "stride": 2, "padding": 1, "hidden_size": 48, "num_heads": 4, "depth": 1}


def test_published_preset_numbers() -> None:
    config = model_config("XS/12/4", 32)
    assert config == ModelConfig(32, 12, 8, 2, 192, 6, 4)
    assert (config.grid_size, config.num_tokens, config.token_width, config.output_width) == (4, 64, 1728, 1024)
    assert model_config("PRDiT-XS/4/0", 16).stride == 4
    beside = model_config("XS/8/4-s8", 32)
    assert beside == ModelConfig(32, 8, 8, 0, 192, 6, 4)
    assert beside.num_tokens == config.num_tokens  # nothing but the overlap is gone
    assert model_config("B/16/4-s16", 32) == ModelConfig(32, 16, 16, 0, 768, 12, 4)
    with pytest.raises(ValueError, match="XS/12/4-s12"):
        model_config("XS/12/4-s12", 32)
    assert len(preset_names()) == len(set(preset_names())) == 5 * 4 * 8 + 2


def test_round_trip_and_unknown_key() -> None:
    config = ModelConfig(**TINY)
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="num_layers"):
        ModelConfig.from_dict({**config.to_dict(), "num_layers": 3})
    with pytest.raises(ValueError, match=r"lacks \['depth'\]"):
        ModelConfig.from_dict({key: value for key, value in config.to_dict().items() if key != "depth"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volume_size": 9}, "9 is not divisible by stride 2.*8 or 10"),
        ({"patch_size": 5}, "must be even"),
        ({"patch_size": 1}, "must be even and >= 0"),
        ({"padding": 0}, "3 windows per axis .* 4.*padding 1"),
        ({"hidden_size": 50}, "not divisible by num_heads"),
        ({"hidden_size": 64}, "divisible by 6"),
        ({"volume_size": 4, "patch_size": 12, "stride": 4, "padding": 4}, "reflects more than volume_size 4"),
        ({"depth": -1}, "depth is -1"),
        ({"num_heads": 0}, "at least 1"),
        ({"volume_size": 8.0}, "expected an integer"),
        ({"depth": True}, "expected an integer"),
    ],
)
def test_impossible_shapes_say_what_and_how_to_mend(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**TINY, **change})  # type: ignore[arg-type]


def test_width_need_not_divide_by_six_without_a_transformer() -> None:
    assert model_config("L/12/0", 16).hidden_size == 1024


@pytest.mark.parametrize(
    ("preset", "size", "message"),
    [
        ("L/12/4", 32, "Preset 'L/12/4' at volume_size 32.*divisible by 6"),
        ("XS/4/1", 16, "XS/4/1.*7 windows per axis"),
        ("XS/12/4", 30, "Impossible preset/size pair.*30.*24 or 32"),
        ("XS/13/4", 32, "Unknown preset"),
        ("XS/12", 32, "Unknown preset"),
    ],
)
def test_impossible_presets(preset: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config(preset, size)
