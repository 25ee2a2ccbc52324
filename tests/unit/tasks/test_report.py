"""The report: self-contained, complete, escaped."""

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from PIL import Image

from prdit_models.metrics.extractors import random as random_module
from prdit_models.metrics.extractors.random import random_medicalnet
from storage.artifacts import Ref
from storage.documents.report import Report
from storage.documents.samples import Samples
from storage.documents.verdicts import Entry, SourceVerdicts
from storage.errors import DamagedArtifactError
from storage.files import read_json
from tasks.evaluate.cards import model_card
from tasks.evaluate.config import EvaluateConfig
from tasks.evaluate.curves import read_metrics
from tasks.evaluate.formats import number
from tasks.evaluate.report import Shown, Subject, draw_pictures, render
from tasks.evaluate.run import RECIPE, evaluate
from tasks.evaluate.stacks import TILE
from tasks.evaluate.tables import loss_table
from tasks.model.checkpoint import load_info
from tests.factories import make_split, make_store
from tests.unit.tasks.checkpoints import commit_pair
from tests.unit.tasks.html_tags import Tags
from tests.unit.tasks.test_evaluate import make_samples

CONFIG = {
    **{"extractor": "random", "num_threads": 1, "device": "cpu", "num_subsamples": 0, "num_shown": 2},
    "metrics": {"wasserstein": None},  # a critic takes seconds
}
HOSTILE = '<script>alert("1")</script><img src=x onerror=y>'


@pytest.fixture(scope="module", autouse=True)
def one_network() -> Iterator[None]:
    """Draw the random network's 46 million weights once a seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_module, "random_medicalnet", lru_cache(random_medicalnet))
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
    config = EvaluateConfig.model_validate(CONFIG)
    evaluate(samples, store, split, config, directory, lambda *_: None, repeat_command=f"prdit run {HOSTILE}")
    return directory, {"snapshot": store, "split": split, "local": local, "global": global_, "samples": samples}


def test_the_page_fetches_nothing_and_runs_no_script_but_its_own(made: tuple[Path, dict[str, Ref]]) -> None:
    raw = (made[0] / "report.html").read_text()
    page = Tags(raw)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or re.match(r"data:image/(png|webp);base64,|#[a-z]+$", value), (tag, name, value)
        assert "url(" not in (attributes.get("style") or "")
    assert "@import" not in page.text
    assert "url(" not in page.text
    policies = [
        attributes for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    (script,) = re.findall(r"<script>(.*?)</script>", raw, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        == policies[0]["content"]
    )
    anchors = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert anchors <= {f"#{attributes['id']}" for tag, attributes in page.tags if "id" in attributes}


def test_slices_can_be_scrolled_and_show_the_middle_at_first(made: tuple[Path, dict[str, Ref]]) -> None:
    page = Tags((made[0] / "report.html").read_text())
    body = next(attributes for tag, attributes in page.tags if tag == "body")
    offsets = [float(value.replace("−", "-")) for value in (body["data-offsets"] or "").split()]
    assert offsets == [16.0 * k for k in range(-4, 4)]  # 8 slices of 16 mm
    assert body["style"] == "--n: 8; --k: 4"
    ranges = [attributes for tag, attributes in page.tags if tag == "input"]
    assert len(ranges) == 1 + 2 + 2 + 2  # all, each volume, each of the closest pairs
    assert {(each["min"], each["max"], each["value"]) for each in ranges} == {("0", "7", "4")}
    strips = [
        attributes["src"] or ""
        for tag, attributes in page.tags
        if (attributes.get("src") or "").startswith("data:image/webp")
    ]
    assert len(strips) == (2 + 2 + 2) * 6
    for strip in strips:
        assert Image.open(io.BytesIO(base64.b64decode(strip.split(",")[1]))).size == (TILE, 8 * TILE)
    for window in ("Lung window, W1500 L−600", "Mediastinal window, W350 L50"):
        assert page.text.count(window) == 2


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
    named = re.findall(r"<td>((?:FID|KID|MMD|Precision|Coverage)[^<]*)<", (directory / "report.html").read_text())
    assert len(named) >= 4
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
    assert raw.count("<script") == 1


def test_figures_are_files_too_and_a_repeat_gives_the_same_bytes(
    made: tuple[Path, dict[str, Ref]], tmp_path: Path
) -> None:
    directory, refs = made
    names = {path.name for path in (directory / "figures").iterdir()}
    volumes = {f"{side}-{number}.png" for side in ("real", "generated") for number in range(2)}
    curves = {"losses.png", "histogram.png", "spectrum.png", "likeness.png"}
    assert names == volumes | curves | {"pair-0.png", "pair-1.png"}
    config = EvaluateConfig.model_validate(CONFIG)
    evaluate(
        refs["samples"],
        refs["snapshot"],
        refs["split"],
        config,
        tmp_path,
        lambda *_: None,
        repeat_command=f"prdit run {HOSTILE}",
    )
    for name in ("report.html", "metrics.json", "model-card.md", "dataset-card.md"):
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()


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
        (1.5e-7, "1.500e−07"),
        (None, "–"),
    ],
)
def test_numbers_carry_four_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown
    assert re.fullmatch(r"[−\d.e+-]+|–", number(value))


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


def test_cards_of_model_and_data_state_what_was_recorded_and_name_no_patient(made: tuple[Path, dict[str, Ref]]) -> None:
    directory, refs = made
    model, data = ((directory / name).read_text() for name in ("model-card.md", "dataset-card.md"))
    for text in (model, data):
        assert "Research use only. Not a medical device" in text
        assert "| Licence | not recorded |" in text
        assert str(directory.parent) not in text
        for name in ("v0", "v3", "1.2.", "notes.txt"):  # volumes, a series, a file
            assert name not in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        assert all(line.endswith(" |") for line in rows)
    assert refs["global"].digest in model
    assert refs["snapshot"].digest in model
    assert refs["snapshot"].digest in data
    assert "| Optimiser steps | 6 |" in model
    row = next(line for line in model.splitlines() if line.startswith("| FID (random features), all real volumes |"))
    assert re.fullmatch(r"lower \| [\d.e+]+ \| – \| 4, 2 \| [\d.e+]+ \(n = 2, 2\) \|", row.split(" | ", 1)[1])
    assert "| Patients | 4 |" in data
    assert "| `missing_slices` | 1 |\n| `not_dicom` | 1 |" in data
    assert "| train | 3 |" in data


def test_any_metric_may_be_left_out(made: tuple[Path, dict[str, Ref]]) -> None:
    directory, refs = made
    whole = Report.load(directory)
    subject = Subject(
        samples=refs["samples"],
        snapshot=refs["snapshot"],
        split=refs["split"],
        info=load_info(refs["global"]),
        drawn=Samples.load(refs["samples"].path),
        config={},
        recipe=RECIPE,
        repeat_command=None,
    )
    for left in (
        {},
        {name: whole.details[name] for name in ("memorisation", "hu")},
        {"anatomy": whole.details["anatomy"]},
    ):
        metrics = whole.model_copy(update={"figures": {}, "references": {}, "blind": {}, "details": left})
        page = Tags(render(subject, metrics, Shown(range(1)), draw_pictures(subject, metrics, directory / "figures")))
        assert "There is no floor and no order test" in page.text
        assert len([tag for tag, attributes in page.tags if attributes.get("id") == "anatomy"]) == ("anatomy" in left)
        assert "## Figures" in model_card(subject, metrics)
