"""The report: self-contained, complete, escaped."""

import re
from collections.abc import Iterator
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prdit_models.metrics.medicalnet import random_medicalnet
from storage.artifacts import Ref
from storage.documents.verdicts import Entry, SourceVerdicts
from storage.errors import DamagedArtifactError
from storage.files import read_json
from tasks.evaluate import features as features_module
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.curves import read_metrics
from tasks.evaluate.report import loss_table, number, title
from tasks.evaluate.run import evaluate
from tests.factories import make_split, make_store
from tests.unit.tasks.checkpoints import commit_pair
from tests.unit.tasks.test_evaluate import make_samples

HOSTILE = '<script>alert("1")</script><img src=x onerror=y>'


class Tags(HTMLParser):
    """Every start tag with its attributes, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module", autouse=True)
def one_network() -> Iterator[None]:
    """Draw the random network's 46 million weights once a seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features_module, "random_medicalnet", lru_cache(random_medicalnet))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Ref]]:
    root = tmp_path_factory.mktemp("report")
    store = make_store(root / "store", num_volumes=4)
    SourceVerdicts(
        source_digest="sha256:0",
        recipe=1,
        config={},
        skipped=[Entry(path="notes.txt", reason="not_dicom", message="notes.txt is not a DICOM file.")],
        quarantined=[Entry(series_uid=f"1.2.{HOSTILE}", reason="missing_slices", message=f"gap {HOSTILE}")],
    ).write(store.path / "exclusions" / "source.json")
    split = make_split(root / "split", store, ["v0", "v1", "v2"], ["v3"])
    local, global_ = commit_pair(root, store, split)
    samples = make_samples(root / "samples", global_, 2)
    directory = root / "report"
    config = EvaluateConfig(num_threads=1, device="cpu", num_bootstrap=0, num_shown=2)
    evaluate(samples, store, split, config, directory, lambda *_: None, repeat_command=f"prdit run {HOSTILE}")
    return directory, {"snapshot": store, "split": split, "local": local, "global": global_, "samples": samples}


def test_the_page_fetches_nothing(made: tuple[Path, dict[str, Ref]]) -> None:
    page = Tags((made[0] / "report.html").read_text())
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base"), tag
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/png;base64,"), (tag, name, value)
        assert "url(" not in (attributes.get("style") or "")
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2 + 2 + 2 + 2
    assert "@import" not in page.text
    assert "url(" not in page.text


def test_every_exclusion_digest_and_figure_is_in_it(made: tuple[Path, dict[str, Ref]]) -> None:
    directory, refs = made
    page = Tags((directory / "report.html").read_text())
    for ref in refs.values():
        assert ref.digest in page.text
    for words in ("not_dicom", "notes.txt is not a DICOM file.", "missing_slices", "skipped", "quarantined"):
        assert words in page.text
    metrics = read_json(directory / "metrics.json")
    for name, figure in metrics["figures"].items():
        assert number(figure["value"]) in page.text, name
    assert metrics["features"]["digest"] in page.text
    assert "compare runs with each other only, not with papers" in page.text
    assert '"num_shown": 2' in page.text  # this report's own configuration
    assert "Research use only. Not a medical device." in page.text
    assert "No held-out figures" in page.text
    assert "fid_val_random_features" not in metrics["figures"]
    named = re.findall(r">((?:FID|MMD)[^<]*)<", (directory / "report.html").read_text())
    assert len(named) == 4  # cards and rows
    assert all("(random features)" in name for name in named)
    for t in (50, 200, 400, 600, 800, 950):
        assert number(0.5 + t / 10000) in page.text
        assert number(0.25 + t / 10000) in page.text
    assert page.text.count("yes") >= 6


def test_hostile_strings_are_text(made: tuple[Path, dict[str, Ref]]) -> None:
    raw = (made[0] / "report.html").read_text()
    page = Tags(raw)
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes or attributes.get("src") == "x"]
    assert page.text.count(HOSTILE) == 3  # series, sentence, command: shown as they are
    assert "<script" not in raw


def test_figures_are_files_too_and_a_repeat_gives_the_same_bytes(
    made: tuple[Path, dict[str, Ref]], tmp_path: Path
) -> None:
    directory, refs = made
    names = {path.name for path in (directory / "figures").iterdir()}
    assert names == {
        "losses.png",
        "histogram.png",
        "real-0.png",
        "real-1.png",
        "generated-0.png",
        "generated-1.png",
    } | {
        "nearest-0.png",
        "nearest-1.png",
    }
    config = EvaluateConfig(num_threads=1, device="cpu", num_bootstrap=0, num_shown=2)
    evaluate(
        refs["samples"],
        refs["snapshot"],
        refs["split"],
        config,
        tmp_path,
        lambda *_: None,
        repeat_command=f"prdit run {HOSTILE}",
    )
    assert (tmp_path / "report.html").read_bytes() == (directory / "report.html").read_bytes()


def test_the_time_table_takes_each_times_last_value() -> None:
    local = [{"step": 1, "val/loss_t050": 9.0}, {"step": 2, "val/loss_t050": 2.0, "val/loss_t950": 1.0}]
    other = [{"step": 5, "val/loss_t050": 1.0, "val/loss_t200": 3.0, "val/loss_t950": 4.0}]
    table = loss_table([("one", local), ("two", other)])
    assert table["titles"] == ["one", "two"]
    assert table["rows"] == [
        {"part": "t050", "losses": [2.0, 1.0], "better": True},
        {"part": "t950", "losses": [1.0, 4.0], "better": False},
    ]  # t200 has no value to compare with
    assert loss_table([("one", local)])["rows"] == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (1.0, "1.000"),
        (123.456, "123.5"),
        (-0.5, "−0.5000"),
        (12345.6, "12346"),
        (1.5e-7, "1.500e-07"),
        (None, "–"),
    ],
)
def test_numbers_carry_four_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown
    assert re.fullmatch(r"[−\d.e+-]+|–", number(value))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("fid", "FID, all real volumes"),
        ("mmd_val", "MMD, held-out volumes only"),
        ("fid_random_features", "FID (random features), all real volumes"),
        ("fid_val_random_features", "FID (random features), held-out volumes only"),
        ("hu_mean_real", "Mean, real"),
    ],
)
def test_distances_say_their_side_and_random_features(name: str, shown: str) -> None:
    assert title(name) == shown


@pytest.mark.parametrize("line", ["[]", "3", "null", '{"loss": 1.0}', '{"step": "x"}', '{"step"'])
def test_a_line_of_metrics_of_another_shape_is_damage(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "val/loss": 0.5}\n\n')
    assert read_metrics(path) == [{"step": 1, "val/loss": 0.5}]
    path.write_text('{"step": 1, "val/loss": 0.5}\n' + line + "\n")
    with pytest.raises(DamagedArtifactError) as raised:
        read_metrics(path)
    assert str(path) in str(raised.value)
    assert str(raised.value).isprintable()
