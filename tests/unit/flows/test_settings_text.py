"""Settings as YAML text: whatever is wrong with them is one sentence with the file and the line."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import as_parameters, from_parameters, load_config
from flows.console import overrides
from flows.pipeline import pipeline
from flows.settings_text import parse, read_settings
from storage.errors import ConfigError


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


FILES = [
    (
        b"base: small\nsample:\n  seed: 1\n  seed: 2\n",
        "the key 'seed' is given twice, in lines 3 and 4; leave one of them",
    ),
    (b"base: tiny\nbase: small\n", "the key 'base' is given twice, in lines 1 and 2"),
    (b"base: {a: 1, a: 2}\n", "the key 'a' is given twice, in lines 1 and 1"),
    (b"base: small\nsample: [1,\n", ", line 3, column 1: not YAML: "),
    (
        b"base: !!python/object/apply:os.system [id]\n",
        ", line 1, column 7: the tag '!!python/object/apply:os.system' is not allowed",
    ),
    (b"base: !secret x\n", ", line 1, column 7: the tag '!secret' is not allowed"),
    (b"base: small\n\xff\xfe\n", " is not UTF-8 text (line 2, byte 12)"),
    (b"base: \x00\n", ", line 1: a character that YAML does not allow, '\\x00'"),
    (b"", " is empty; expected a mapping of settings"),
    (b"[]", " holds a list; expected a mapping of settings"),
    (b"base: 2001-99-99", ": month must be in 1..12"),
    (b"[" * 20_000, ": nested too deeply"),
    (b"a: " + b"x" * 2**20, " has more than 1048576 bytes"),
]


@pytest.mark.parametrize(("content", "message"), FILES, ids=[message[:30] for _, message in FILES])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    for call in (read_settings, load_config, as_parameters, from_parameters, pipeline.fn):
        arguments = (path,) if call is read_settings else (str(path),)
        said = refused(call, *arguments)
        assert said.startswith(f"the configuration {path}")
        assert message in said
    found = CliRunner().invoke(app, ["plan", "--config", str(path)])
    assert (found.exit_code, found.stderr) == (2, f"error: {said}\n")


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert refused(load_config, str(folder)) == f"the configuration {folder} cannot be read: Is a directory"
    missing = tmp_path / "missing.yaml"
    assert (
        refused(load_config, str(missing)) == f"the configuration {missing} cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_name_is_no_configuration(text: str) -> None:
    for call in (load_config, as_parameters, from_parameters, pipeline.fn):
        assert refused(call, text).startswith(
            "the configuration is empty text; is a shell variable unset? There are demo, "
        )
    found = CliRunner().invoke(app, ["plan", "--config", text])
    assert found.exit_code == 2
    assert "the configuration is empty text" in found.stderr


@pytest.mark.parametrize("given", [[], "", 0, ["recipe"]])
def test_overrides_of_the_form_are_a_mapping(given: Any) -> None:
    assert (
        refused(from_parameters, "tiny", None, None, given) == f"overrides must be a mapping of settings, got {given!r}"
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("x=[1,", "--set 'x=[1,', line 1, column 4: not YAML: "),
        ("x={a: 1, a: 2}", "--set 'x={a: 1, a: 2}': the key 'a' is given twice"),
        ("x=!!python/name:os.system", "the tag '!!python/name:os.system' is not allowed"),
        ("x=\x1b[31m", "a character that YAML does not allow, '\\x1b'"),
    ],
)
def test_a_setting_that_is_not_yaml(setting: str, message: str) -> None:
    assert message in refused(overrides, [setting])
    found = CliRunner().invoke(app, ["plan", "--config", "tiny", "--set", setting])
    assert found.exit_code == 2
    assert message in found.stderr
    assert "\x1b" not in found.stderr


def test_values_are_those_of_yaml_and_merge_keys_are_no_doubles() -> None:
    assert parse("a: &x {b: 1, c: 1}\nd: {<<: *x, b: 2}", "it") == {"a": {"b": 1, "c": 1}, "d": {"b": 2, "c": 1}}
    assert parse("0.5", "it") == 0.5
    assert parse("", "it") is None


@pytest.mark.parametrize("text", ["base: [small]", "base: 3", "1: 2\nbase: tiny", "recipe: &x {one: *x}\nbase: tiny"])
def test_values_of_another_kind_are_refused_by_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(str(path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"recipe": {"global": {"conditions": "age_years"}}},
            r"conditions: expected a list, such as .*, got 'age_years'",
        ),
        ({"sample": {"conditions": ["age_years"]}}, r"conditions: expected a mapping, such as .*, got \['age_years'\]"),
        ({"recipe": {"global": {"mask": True}}}, r"mask: expected a mapping, such as .*, got True"),
    ],
)
def test_what_is_expected_is_said_in_the_words_of_yaml(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", overrides)
