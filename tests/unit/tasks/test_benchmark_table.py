"""A benchmark's table: means and intervals over seeds, costs, CSV, LaTeX, and the page in a browser."""

import csv
import io
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from flows.published_figures import published_figures
from storage.documents.benchmark import BenchmarkDocument, Line, PlannedTraining
from storage.documents.provenance import Cost
from storage.documents.report import FigureRecord
from storage.errors import StorageError
from storage.snapshots import open_snapshot
from tasks.benchmark import grids, page
from tasks.benchmark.columns import COLUMNS, floor_of, quality_of
from tasks.benchmark.output import as_csv, as_latex, as_rows
from tasks.benchmark.paper import PAPER, paper_row
from tasks.benchmark.planned import deviations_of
from tasks.benchmark.plots import side_by_side
from tasks.benchmark.results import flops_per_volume
from tasks.benchmark.summary import mean_of, means_of
from tests.factories import make_data
from tests.unit.storage.documents.examples import BENCHMARK, EXAMPLES

LINE = BENCHMARK.lines[0]


def test_the_interval_over_seeds_is_students() -> None:
    found = mean_of([1.0, 3.0])
    # s = √2, s / √2 = 1, t(0.975; 1) = tan(0.475 π)
    assert found.value == 2.0
    assert found.high == pytest.approx(2.0 + math.tan(0.475 * math.pi), rel=1e-9)
    assert found.low == pytest.approx(2.0 - math.tan(0.475 * math.pi), rel=1e-9)
    # t(0.975; 2) = p √2 / √(1 - p²) with p = 0.95
    three = mean_of([1.0, 2.0, 3.0])
    assert three.high == pytest.approx(2.0 + 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3), rel=1e-9)
    assert (mean_of([5.0]).low, mean_of([5.0]).count) == (None, 1)
    with pytest.raises(ValueError, match="no values"):
        mean_of([])


def test_a_figure_that_some_seeds_lack_is_the_mean_of_the_others() -> None:
    means = means_of(LINE)
    assert means["fid"].value == 2.0
    assert "kid" not in means
    lacking = LINE.results[1].model_copy(update={"figures": {"fid": None}})
    assert means_of(LINE.model_copy(update={"results": (LINE.results[0], lacking)}))["fid"].count == 1


def cost(volumes: int) -> Cost:
    return Cost(seconds=1.0, steps=1, volumes=volumes, peak_memory_bytes=1, device="cpu", threads=1, ranks=1)


def planned(name: str, flops: int | None) -> PlannedTraining:
    return LINE.trainings[0].model_copy(update={"name": name, "flops_per_volume": flops})


def test_operations_are_those_of_the_volumes_that_were_seen() -> None:
    two = (planned("a", 100), planned("b", 400))
    assert flops_per_volume(two, {"a": cost(10), "b": cost(30)}) == (100 * 10 + 400 * 30) / 40
    assert flops_per_volume(two, {"a": cost(10)}) is None
    assert flops_per_volume((planned("a", None),), {"a": cost(10)}) is None


def test_figures_are_taken_by_either_name_and_beside_them_those_of_real_volumes() -> None:
    def figure(value: float) -> FigureRecord:
        return FigureRecord(value=value, n_real=4, n_generated=2, unit="", features=None, interval=None, note="")

    report: Any = EXAMPLES["report"]
    figures = {
        "fid_random_features": figure(7.0),
        "ms_ssim_2_scales": figure(0.3),
        "ms_ssim_2_scales_real": figure(0.4),
        "copy_rate": figure(0.0),
        "copy_rate_held_out": figure(0.1),
    }
    found = report.model_copy(
        update={"figures": figures, "references": {"floor": {"fid_random_features": figure(0.5)}}}
    )
    values, floor = quality_of(found), floor_of(found)
    assert (values["fid"], values["ms_ssim"], values["copies"], values["kid"]) == (7.0, 0.3, 0.0, None)
    assert (floor["fid"], floor["ms_ssim"], floor["copies"], floor["recall"]) == (0.5, 0.4, 0.1, None)


def test_csv_has_every_column_and_the_floor() -> None:
    first, floor = csv.DictReader(as_csv(BENCHMARK).splitlines())
    assert (first["title"], first["fid"], first["fid_seeds"], first["kid"], first["kid_seeds"]) == (
        "A & B",
        "2",
        "2",
        "",
        "0",
    )
    assert float(first["fid_high"]) == pytest.approx(2 + math.tan(0.475 * math.pi), rel=1e-6)
    assert {column.name for column in COLUMNS} < first.keys()
    assert (floor["row"], floor["fid"]) == ("real", "0.5")


def test_latex_escapes_and_leaves_out_empty_columns() -> None:
    text = as_latex(BENCHMARK)
    assert r"A \& B (few) & 2.000 $\pm$ 12.71 &" in text
    assert r"3D FID $\downarrow$" in text
    assert "KID" not in text
    figures = {"kid": -2.5e-4, "mmd": -0.5, "parameters": 3e6}
    same = tuple(result.model_copy(update={"figures": figures}) for result in LINE.results)
    text = as_latex(BENCHMARK.model_copy(update={"lines": (LINE.model_copy(update={"results": same}),)}))
    assert r"A \& B (few) & $-2.500 \times 10^{-4}$ & $-0.5000$ & 3.000 \\" in text  # no interval of what does not vary
    assert r"\begin{tabular}{lrrr}" in text
    text = as_latex(BENCHMARK.model_copy(update={"title": "a\\b^2~<c>"}))
    assert r"% a\textbackslash{}b\textasciicircum{}2\textasciitilde{}\textless{}c\textgreater{}. Budget" in text


def test_a_runs_page_has_the_means_of_the_figures_that_are_there() -> None:
    [row] = as_rows(BENCHMARK)
    assert (row["Row"], row["Seeds"], row["3D FID"]) == ("A & B (few)", "2 of 2", "2.000")
    assert "KID" not in row


def test_lines_of_nearly_the_same_cost_stand_side_by_side() -> None:
    assert side_by_side([90.1, 90.0, 90.9]) == [0.0, 1.0, 2.0]
    assert side_by_side([90.0, 100.0]) is None
    assert side_by_side([90.0]) is None


def test_families_say_their_deviations_in_any_of_three_ways() -> None:
    class Given:
        def __init__(self, said: Any) -> None:
            self.of_family = type("Family", (), {"deviations": staticmethod(said) if callable(said) else said})
            self.model, self.process = {"size": 16}, None

    ways = {
        "a": ("one", "two"),
        "b": lambda description, process=None: (f"size {description['size']}", "one"),
        "c": lambda settings, description: (f"settings {settings}",),
    }
    infos: Any = {name: Given(said) for name, said in ways.items()}
    trainings: Any = {name: type("Config", (), {"settings": 5}) for name in ways}
    assert deviations_of(trainings, infos) == ("one", "two", "size 16", "settings 5")


def test_the_papers_figures_have_one_home() -> None:
    assert paper_row("LIDC-IDRI", 128, "HA-GAN").fid == 3.26e-3
    assert paper_row("LIDC-IDRI", 256, "3D-LDM").fid is None  # out of memory
    ours = published_figures("global", "rad", 128, 12)
    assert ours is not None
    assert (ours.fid, ours.mmd) == (1.45e-3, 0.159)
    assert len({(row.data, row.size, row.model) for row in PAPER}) == len(PAPER)


# ---- the page ------------------------------------------------------------------------------------------------------------------


def lines() -> tuple[Line, ...]:
    """Rows whose FID are 2, 10 and unknown, in this order."""
    second = LINE.results[0].model_copy(update={"figures": {"fid": 10.0}})
    return (
        LINE.model_copy(update={"row": "b", "title": "B", "results": (second,), "deviations": ("<i>x</i>",)}),
        LINE,
        LINE.model_copy(update={"row": "c", "title": "C", "results": (), "failed": {"1": "OutOfMemoryError"}}),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def gone(*_: Any) -> bytes:
        raise StorageError("the volumes are gone")

    document = BENCHMARK.model_copy(update={"lines": lines()})
    path = tmp_path_factory.mktemp("page") / "compare.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "of_samples", lambda ref: b"RIFF")
        patch.setattr(page, "of_store", gone)
        path.write_text(page.render(document))
    return path


def test_the_page_escapes_and_shows_a_failure_and_the_papers_rows(written: Path) -> None:
    text = written.read_text()
    assert "&lt;i&gt;x&lt;/i&gt;" in text
    assert "<i>x</i>" not in text
    assert "seed 1: OutOfMemoryError" in text
    assert ">3.26<" in text
    assert "its own measurements" in text
    assert isinstance(BENCHMARK, BenchmarkDocument)


@pytest.fixture(scope="module")
def browser(written: Path) -> Iterator[webdriver.Chrome]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
        driver.get(written.as_uri())
        yield driver
        driver.quit()


def test_a_click_sorts_and_a_second_one_turns_around_with_the_unknown_last(browser: webdriver.Chrome) -> None:
    def order() -> list[str]:
        return [
            row.text.split("\n")[0] for row in browser.find_elements(By.CSS_SELECTOR, "#lines tbody tr td:first-child")
        ]

    assert order() == ["B", "A & B", "C"]
    fid = browser.find_elements(By.CSS_SELECTOR, "#lines thead th button")[1]
    fid.click()
    assert order() == ["A & B", "B", "C"]
    fid.click()
    assert order() == ["B", "A & B", "C"]
    assert fid.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"
    browser.find_elements(By.CSS_SELECTOR, "#lines thead th button")[0].click()
    assert order() == ["A & B", "B", "C"]


def test_no_patient_is_on_the_page(tmp_path: Path) -> None:
    """Blobs without a manufacturer stand for scans; of the same store with a phantom's mark, the held-out ones are shown."""
    snapshot, split = make_data(tmp_path)
    assert grids.of_store(snapshot, split, 16, 16) is None
    marked = dict.fromkeys(("v0", "v1", "v2"), "prdit phantom")
    listed = open_snapshot(snapshot)[1]
    volumes = {
        name: volume.model_copy(update={"attributes": {"Manufacturer": marked[name]}})
        for name, volume in listed.volumes.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        store = open_snapshot(snapshot)[0]
        patch.setattr(grids, "open_snapshot", lambda ref: (store, listed.model_copy(update={"volumes": volumes})))
        strip = grids.of_store(snapshot, split, 16, 16)
    assert strip is not None
    picture = Image.open(io.BytesIO(strip))
    assert picture.size == (grids.TILE, 2 * grids.TILE + grids.GAP)  # the one that is held out, axial above coronal
    assert len(set(picture.convert("L").tobytes())) > 10
