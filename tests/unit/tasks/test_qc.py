"""The quality page: what it shows of volumes and exclusions, that it is one safe file, and that its size is bounded."""

import base64
import html
import io
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from storage.documents.snapshot import SnapshotVolume
from storage.documents.verdicts import Entry, SourceVerdicts
from storage.documents.volume import ScanFacts
from storage.geometry import Volume
from storage.snapshots import list_all
from storage.volume_store import VolumeStore
from tasks.ingest import qc
from tasks.ingest.pictures import BINS, histogram, mosaic, thumbnail
from tasks.ingest.qc import page_path, write_page
from tasks.ingest.run import ingest
from tasks.run.runners import Local
from tests.factories import small_ingest
from tests.unit.storage.dicom_files import write_series

CONFIG = small_ingest(spacing_mm=2.0, num_levels=2)
NASTY = "zz<img src=x onerror=alert(1)>\"'&\n\x1b[31m.txt"


def articles(page: Path) -> list[dict[str, str]]:
    """The rows of a page: their data attributes, and their HTML."""
    found = []
    for head, body in re.findall(r"<article ([^>]*)>(.*?)</article>", page.read_text(), re.DOTALL):
        found.append(
            {name: html.unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', head)} | {"html": body}
        )
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an ingest with a good series, one with a gap and one without pixels, and a file with a nasty name."""
    root = tmp_path_factory.mktemp("qc")
    write_series(root / "src" / "good", uid="1.2.3.1")
    write_series(root / "src" / "gap", uid="1.2.3.2", skip=(9,))
    write_series(root / "src" / "nopixels", uid="1.2.3.3", change=lambda k, data: delattr(data, "PixelData"))
    (root / "src" / NASTY).write_text("no image")
    ingest(root / "src", root / "store", CONFIG, runner=Local(1))
    return page_path(root / "store")


def test_every_item_has_a_row(page: Path) -> None:
    rows = {row["what"]: row for row in articles(page)}
    assert {what: (row["verdict"], row["reason"]) for what, row in rows.items()} == {
        "1.2.3.1": ("committed", ""),
        "1.2.3.2": ("quarantined", "missing_slices"),
        "1.2.3.3": ("quarantined", "unreadable_pixels"),
        qc.one_line(NASTY): ("skipped", "unknown_format"),
    }
    good = rows["1.2.3.1"]
    assert (good["slices"], good["spacing"]) == ("24", "2.5")
    assert float(good["length"]) == pytest.approx(24 * 2.5, abs=4)
    assert "1.7 × 1.3 × 2.5 mm, 24 slices" in good["html"]
    assert "ImagePositionPatient" in rows["1.2.3.2"]["html"]
    assert "gap" in rows["1.2.3.2"]["html"]
    assert "first file: good/000.dcm" in good["html"]
    assert "first file: gap/000.dcm" in rows["1.2.3.2"]["html"]
    assert "first file" not in rows["1.2.3.3"]["html"]  # its sentence names the file


def test_pictures_are_of_the_volume_and_of_the_refused_scan(page: Path) -> None:
    rows = {row["what"]: row for row in articles(page)}

    def picture(what: str) -> Image.Image:
        found = re.search(r'src="data:image/(?:png|jpeg);base64,([^"]*)"', rows[what]["html"])
        assert found is not None, rows[what]
        return Image.open(io.BytesIO(base64.b64decode(found[1])))

    assert picture("1.2.3.1").format == "JPEG"
    assert picture("1.2.3.1").size[0] > 2 * picture("1.2.3.1").size[1]
    refused = np.asarray(picture("1.2.3.2"))
    assert refused.shape == (26, 28)
    assert refused.std() > 5  # a world-linear slice is a ramp
    assert "no picture" in rows["1.2.3.3"]["html"]


def test_the_page_is_one_file_and_escapes_everything(page: Path) -> None:
    text = page.read_text()
    assert text.count("<script>") == 1
    assert "\x1b" not in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text)
    assert "https://" not in text
    assert "http://" not in text
    assert "default-src 'none'" in text


def test_pictures_are_drawn_once(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = articles(page)
    monkeypatch.setattr(qc, "mosaic", None)
    assert articles(write_page(VolumeStore.open(page.parent.with_suffix("")))) == before


def test_a_picture_file_that_is_damaged_is_made_again(page: Path) -> None:
    before = articles(page)
    (kept,) = (page.parent / "pictures").iterdir()
    kept.write_text("{")
    assert articles(write_page(VolumeStore.open(page.parent.with_suffix("")))) == before


def test_a_damaged_volume_is_a_row_with_its_reason(page: Path, tmp_path: Path) -> None:
    shutil.copytree(page.parent.with_suffix(""), tmp_path / "store")
    next((tmp_path / "store" / "commits").iterdir()).write_text("{")
    (row,) = articles(write_page(VolumeStore.open(tmp_path / "store")))
    assert (row["verdict"], row["reason"]) == ("quarantined", "damaged_volume")


def test_a_mosaic_shows_right_front_and_top_where_they_belong() -> None:
    """A bright block at the patient's right, front and top: left and top in axial, left and top in coronal, and sagittal."""
    hu = np.full((40, 40, 40), -1000, dtype=np.int16)
    hu[20:36, 4:22, 4:22] = 100  # z high: top; y low: front; x low: right
    picture = np.asarray(
        Image.open(io.BytesIO(base64.b64decode(mosaic(Volume(hu, (1.0,) * 3, (0.0,) * 3))))), dtype=float
    )
    axial, coronal, sagittal = (picture[:, left : left + 150] for left in (0, 152, 304))
    for plane in (axial, coronal, sagittal):
        assert plane[50, 50] > 200
        assert plane[100, 100] < 100


def test_a_histogram_leaves_fill_out_and_is_relative_to_its_highest_bin() -> None:
    hu = np.concatenate([np.full(5000, -1024), np.full(100, 0), np.full(25, 3000)]).astype(np.int16)
    bars = histogram(hu)
    assert len(bars) == BINS
    assert (bars[32], bars[63], sum(bars)) == (1000, 250, 1250)


@pytest.mark.filterwarnings("error")
def test_what_is_no_finite_number_is_dark_in_a_thumbnail() -> None:
    image = np.full((8, 8), 3e38, dtype=np.float32)
    image[:4], image[7] = -3e38, np.nan
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(str(thumbnail(image))))))
    assert shown[:, 0].tolist() == [0, 0, 0, 0, 255, 255, 255, 0]


@pytest.mark.parametrize("image", [np.zeros((3, 4, 3)), np.zeros((0, 4)), np.full((4, 4), np.nan)])
def test_what_is_no_image_has_no_thumbnail(image: np.ndarray) -> None:
    assert thumbnail(image) is None


def test_thumbnails_of_other_values_are_scaled_to_their_range() -> None:
    data = thumbnail(np.arange(400 * 300, dtype=np.float32).reshape(400, 300))
    assert data is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert max(shown.shape) == 112
    assert shown.min() < 5
    assert shown.max() > 250


# -- a thousand volumes ----------------------------------------------------------------------------------------------

MANY = 1000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a store that lists one volume's bytes under a thousand ids, and 300 exclusions."""
    root = tmp_path_factory.mktemp("many")
    store = VolumeStore.create(root / "store", spacing_mm=2.0, num_levels=1)
    rng = np.random.default_rng(3)
    hu = rng.normal(-300, 400, (120, 150, 150)).clip(-1024, 3000).astype(np.int16)  # noise: nothing compresses worse
    store.write(Volume(hu, (2.0,) * 3, (0.0,) * 3), volume_id="v", attributes={}, scan=None)
    record = store.commit_record("v")
    volumes = {}
    for k in range(MANY):
        facts = ScanFacts(
            scan=f"1.2.{k}",
            files_digest="0",
            recipe=1,
            num_slices=60 + k % 90,
            spacing_mm=(0.7, 0.7, 1.0 + k % 5),
            cut={"body": 0.1, "lung": (k % 50) / 1000},
            notes=("an assumption",) if k % 10 == 0 else (),
        )
        copy = record.model_copy(update={"volume_id": f"v{k:04d}", "scan": facts})
        copy.put(store.record_path(copy.volume_id))
        volumes[copy.volume_id] = SnapshotVolume(
            patient_key=f"{k:032d}",
            patient_known=True,
            shape=record.shape,
            attributes={"ConvolutionKernel": f"B{k % 7}0f"},
        )
    list_all(store, volumes, "test")
    gone = [
        Entry(series_uid=f"1.9.{k}", reason=("too_short", "missing_slices")[k % 2], message="A sentence.", num_slices=k)
        for k in range(300)
    ]
    SourceVerdicts(
        source_digest="sha256:0",
        recipe=1,
        config={},
        quarantined=gone,
        num_excluded={"too_short": 150, "missing_slices": 150},
        notes=[f"Scan 1.2.{'3' * 60}: a note."],
    ).write(root / "store.ingests" / "source-0.json")
    return write_page(store)


def test_a_thousand_volumes_fit(many: Path) -> None:
    assert many.stat().st_size < 40 * 2**20
    assert len(articles(many)) == MANY + 300


@pytest.fixture(scope="module")
def browser(many: Path) -> Iterator[webdriver.Chrome]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
        driver.get(many.as_uri())
        yield driver
        driver.quit()


def shown(browser: webdriver.Chrome) -> list[dict[str, str]]:
    """Data of the rows that are seen, in order."""
    script = "return [...document.querySelectorAll('article.row')].filter(r => !r.hidden).map(r => ({...r.dataset}))"
    return list(browser.execute_script(script))


def test_the_bar_is_seen_while_the_page_is_scrolled(browser: webdriver.Chrome) -> None:
    script = "window.scrollTo(0, arguments[0]); return document.getElementById('bar').getBoundingClientRect().top"
    assert browser.execute_script(script, 5000) == 0
    assert browser.execute_script(script, 0) > 0


def test_nothing_is_wider_than_a_narrow_window(browser: webdriver.Chrome) -> None:
    size = browser.get_window_size()
    browser.set_window_size(500, 800)
    script = "document.querySelector('details').open = true; const page = document.documentElement;"
    wide, window = browser.execute_script(f"{script} return [page.scrollWidth, page.clientWidth]")
    browser.set_window_size(size["width"], size["height"])
    assert wide == window


def test_sorting_and_filtering(browser: webdriver.Chrome) -> None:
    assert browser.find_element(By.ID, "shown").text == "1300 of 1300"
    Select(browser.find_element(By.ID, "sort")).select_by_value("lung")
    browser.find_element(By.ID, "direction").click()
    values = [float(row["lung"]) for row in shown(browser)]
    assert values[0] == 0.049
    assert values == sorted(values, reverse=True)
    Select(browser.find_element(By.ID, "sort")).select_by_value("slices")
    browser.find_element(By.ID, "direction").click()
    slices = [int(row["slices"]) for row in shown(browser)]
    assert slices == sorted(slices)  # as numbers, not as text
    Select(browser.find_element(By.ID, "reason")).select_by_value("too_short")
    assert {row["reason"] for row in shown(browser)} == {"too_short"}
    assert browser.find_element(By.ID, "shown").text == "150 of 1300"
    Select(browser.find_element(By.ID, "reason")).select_by_value("")
    browser.find_element(By.ID, "text").send_keys("b60F")
    assert len(shown(browser)) == MANY // 7
    browser.find_element(By.ID, "text").clear()
    browser.find_element(By.ID, "text").send_keys(" ")
    browser.find_element(By.ID, "warned").click()
    assert {row["verdict"] for row in shown(browser)} == {"unchanged"}
    assert len(shown(browser)) == len([k for k in range(MANY) if k % 10 == 0 or k % 50 > 10])
    browser.find_element(By.ID, "warned").click()
    browser.find_element(By.CSS_SELECTOR, "[name=verdict][value=unchanged]").click()
    assert len(shown(browser)) == 300
