"""Open what a newcomer opens, in Chromium: Prefect's form and run page, MLflow's runs, run and compare pages, the report.

Two runs of the configuration `tiny` are started from the form, the second with another seed of sampling, and what the pages
then show is checked. Needs Debian's `chromium` and `chromium-driver`. Every page leaves a screenshot, to be looked at.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from flows import services as local
from flows.config import load_config
from flows.parameters import columns
from flows.stages import rows
from storage.files import read_json
from storage.phantom.series import write_demo_data

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = load_config("tiny")
STAGES = tuple(rows(TINY))
CHANGED = "sample.seed"
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1700,1200",
)
_PATIENCE_S = 90.0  # pages share two cores with everything else
_RUN_S = 240.0


def missing() -> list[str]:
    """Debian packages whose programs are not on PATH."""
    programs = {"chromium": "chromium", "chromedriver": "chromium-driver"}
    return [package for program, package in programs.items() if shutil.which(program) is None]


def run(root: Path, rounds: int, shots: Path | None = None) -> dict[str, Any]:
    """Run the pipeline `1 + rounds` times from Prefect's form, each time with another seed, and look at every page.

    Args:
        root: for services, store and work.
        rounds: runs beside the first.
        shots: folder for the screenshots; default: in `root`.

    Raises:
        FileNotFoundError: Chromium or its driver is not installed.
        AssertionError: a page does not show what it should.
    """
    if packages := missing():
        raise FileNotFoundError(
            f"The browser drill needs {' and '.join(packages)}: apt-get install {' '.join(packages)}"
        )
    shots = shots or root / "shots"
    shots.mkdir(parents=True, exist_ok=True)
    write_demo_data(root / "source", num_patients=3, small=True)
    services = local.start(root / "services")
    try:
        local.deploy(services, root)
        with _browser() as driver:
            page = Page(driver, shots)
            runs = [_run_from_form(page, services, root, seed) for seed in range(1 + rounds)]
            records = [read_json(path) for path in sorted((root / "work" / "runs").glob("*/record.json"))]
            assert len(records) == len(runs), (records, runs)
            shown = {
                "prefect_run": _prefect_run(page, services, runs[0]),
                "mlflow_runs": _mlflow_runs(page, services, records),
                "mlflow_compare": _mlflow_compare(page),
                "mlflow_run": _mlflow_run(page, services, records[0]),
                "report": _report(page, Path(records[0]["report"])),
            }
    finally:
        local.stop(root / "services")
    return {"runs": len(runs), **shown, "shots": sorted(path.name for path in shots.glob("*.png"))}


class Page:
    """The browser's page, with waiting: pages are built by scripts after they are loaded.

    Args:
        driver: the browser.
        shots: folder of screenshots.
    """

    def __init__(self, driver: webdriver.Chrome, shots: Path) -> None:
        self.driver = driver
        self._shots = shots

    def open(self, url: str) -> None:
        self.driver.get("about:blank")  # an address that differs behind its # only would not be loaded again
        self.driver.get(url)

    @property
    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def wait(self, found: Callable[[], Any], what: str) -> Any:
        """The first true value of a condition, asked again while the page changes under it."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                if value := found():
                    return value
            except WebDriverException:  # an element that was replaced while it was looked at
                pass
            if time.monotonic() > deadline:
                self.shot("failed")
                raise AssertionError(
                    f"{what} did not appear at {self.driver.current_url}; the page shows:\n{self.text}"
                )
            time.sleep(0.3)

    def wait_for_text(self, *texts: str) -> str:
        """The page's text once all of these are in it."""
        self.wait(lambda: all(text in self.text for text in texts), f"text {texts}")
        return self.text

    def elements(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        """Click the first of these elements."""
        self.wait(lambda: [element.click() for element in self.elements(selector)[:1]], selector)

    def click_text(self, text: str) -> None:
        """Click what is labelled so: of several, the first that takes a click."""

        def clicked() -> bool:
            for element in self.driver.find_elements(By.XPATH, f"//*[text()[normalize-space()='{text}']]"):
                try:
                    element.click()
                    return True
                except WebDriverException:  # hidden or covered
                    continue
            return False

        self.wait(clicked, f"something to click that says {text!r}")

    def shot(self, name: str) -> None:
        self.driver.save_screenshot(str(self._shots / f"{name}.png"))


@contextmanager
def _browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(shutil.which("chromedriver"))))
        try:
            yield driver
        finally:
            driver.quit()


# -- Prefect ----------------------------------------------------------------------------------------------------------


def _run_from_form(page: Page, services: local.Services, root: Path, seed: int) -> str:
    """Fill in *Custom run*, submit, wait for the run's end; the flow run's id."""
    deployment = local.call_api(services, "GET", "/deployments/name/prdit/full-pipeline")
    page.open(f"{services.prefect_ui_url}/deployments/deployment/{deployment['id']}")
    page.click_text("Run")
    page.click_text("Custom run")
    page.wait(
        lambda: _labels(page) == ["configuration", "source", "store", "overrides", "stage"],
        "the form with its five fields",
    )
    overrides = {"workdir": str(root / "work"), "sample": {"seed": seed}}
    _fill(page, "configuration", "tiny")
    _fill(page, "source", str(root / "source"))
    _fill(page, "store", str(root / "store"))
    _fill(page, "overrides", json.dumps(overrides))
    page.shot(f"prefect-form-{seed}")
    started = _submit(page, services)
    assert started["parameters"]["overrides"] == overrides, started["parameters"]
    deadline = time.monotonic() + _RUN_S
    while (state := local.call_api(services, "GET", f"/flow_runs/{started['id']}")["state"])["type"] in (
        "SCHEDULED",
        "PENDING",
        "RUNNING",
    ):
        assert time.monotonic() < deadline, f"the flow run is still {state['name']}"
        time.sleep(1.0)
    assert state["type"] == "COMPLETED", state
    return str(started["id"])


def _labels(page: Page) -> list[str]:
    return [element.text.split(" ")[0] for element in page.elements(".schema-form-property__label")]


def _submit(page: Page, services: local.Services) -> dict[str, Any]:
    """Send the form and find the flow run; where the page says that its server did not answer in time, once more."""
    before = {run["id"] for run in _flow_runs(services)}
    page.click_text("Submit")

    def started() -> list[dict[str, Any]]:
        found = [run for run in _flow_runs(services) if run["id"] not in before]
        if not found and "Something went wrong" in page.text:
            for text in ("Close", "Submit"):  # by script: a notice that is coming or going takes no click of the mouse
                for element in page.driver.find_elements(By.XPATH, f"//*[text()[normalize-space()='{text}']]"):
                    page.driver.execute_script("arguments[0].click()", element)
        return found

    (run,) = page.wait(started, "the flow run")
    return run


def _fill(page: Page, field: str, text: str) -> None:
    """Put text into a field of the form: a list, a text field, or the JSON editor of a mapping."""
    block = next(e for e in page.elements(".schema-form-property") if e.text.startswith(field))
    if lists := block.find_elements(By.CSS_SELECTOR, "select"):
        Select(lists[0]).select_by_visible_text(text)
        return
    box = block.find_element(By.CSS_SELECTOR, ".cm-content, textarea, input")
    box.click()
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(Keys.DELETE)
    page.driver.execute_script("document.execCommand('insertText', false, arguments[0])", text)  # as pasted


def _flow_runs(services: local.Services) -> list[dict[str, Any]]:
    mine = {"flows": {"name": {"any_": ["prdit"]}}}  # schedules of other flows make runs at any time
    found: list[dict[str, Any]] = local.call_api(services, "POST", "/flow_runs/filter", mine)
    return found


def _prefect_run(page: Page, services: local.Services, flow_run_id: str) -> dict[str, Any]:
    """The run's page: completed, with a task for every stage."""
    page.open(f"{services.prefect_ui_url}/runs/flow-run/{flow_run_id}")
    page.wait_for_text("Completed", "Task Runs")
    page.shot("prefect-run")
    page.click_text("Task Runs")
    text = page.wait_for_text(*STAGES)
    page.shot("prefect-run-tasks")
    return {"stages": [stage for stage in STAGES if stage in text]}


# -- MLflow -----------------------------------------------------------------------------------------------------------


def _mlflow_runs(page: Page, services: local.Services, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The page that prdit prints the address of: runs (not traces), with source, dataset, model and figures of each."""
    page.open(local.mlflow_page(services, records[0]["mlflow_experiment_id"]))
    page.wait(lambda: len(_table(page).get("Run Name", [])) == len(records), "a row for every run")
    _close_assistant(page)
    assert [heading.text for heading in page.elements("h1, h2")] == ["Runs"], page.text
    figures = columns(TINY)
    filled = {"Source", "Dataset", "Models", *figures}
    table = page.wait(lambda: not _empty(_table(page), filled) and _table(page), f"a value in every cell of {filled}")
    page.shot("mlflow-runs")
    assert set(table["Source"]) == {"full-pipeline"}, table
    assert all(cell.startswith("CT at 4 mm (") for cell in table["Dataset"]), table
    assert set(table["Models"]) == {"checkpoint-global"}, table
    for name in figures:
        shown = sorted(round(float(cell), 9) for cell in table[name])
        stage = name.split("/")[0]
        assert shown == sorted(round(record["stages"][stage]["figures"][name], 9) for record in records), (name, shown)
    return {name: table[name] for name in sorted(filled)}


def _empty(columns: dict[str, list[str]], names: set[str]) -> set[str]:
    """Columns that are not there, or have a cell without a value."""
    return {name for name in names if name not in columns or {"", "-"} & set(columns[name])}


def _table(page: Page) -> dict[str, list[str]]:
    """Cells of the table of runs by the heading of their column; of a cell with several lines, the telling one."""
    cells: dict[str, list[str]] = page.driver.execute_script(
        """
        const shown = {};
        for (const head of document.querySelectorAll('.ag-header-cell[col-id]')) {
            const own = cell => cell.getAttribute('col-id') === head.getAttribute('col-id');
            const cells = [...document.querySelectorAll('.ag-row .ag-cell')].filter(own);
            shown[head.innerText.trim()] = cells.map(cell => cell.innerText.trim());
        }
        return shown;
        """
    )
    named = {name: [cell.split("\n")[0] for cell in column] for name, column in cells.items()}
    return named | {"Run Name": [cell.split("\n")[-1] for cell in cells.get("Run Name", [])]}


def _close_assistant(page: Page) -> None:
    """MLflow opens its assistant on the first visit of a browser, over a third of the page."""
    page.click("button[aria-label=Close]")


def _mlflow_compare(page: Page) -> dict[str, Any]:
    """Two runs ticked in the table and compared: one parameter differs, and every metric has a value of both."""
    for box in page.elements(".ag-row .ag-selection-checkbox input")[:2]:
        box.click()
    page.click_text("Compare")
    page.wait_for_text("Comparing 2 Runs", "Show diff only")
    page.shot("mlflow-compare")
    parameters, *_ = page.wait(lambda: _tables(page, "configuration"), "the table of parameters")
    assert len(parameters) < 30, parameters
    assert all(len(row) == 3 for row in parameters), parameters
    differing = {row[0] for row in parameters if row[1] != row[2]}
    assert differing == {CHANGED}, differing
    page.driver.execute_script(
        "arguments[0].scrollIntoView()", page.driver.find_element(By.XPATH, "//*[text()='Show diff only']")
    )
    page.click_text("Show diff only")
    page.wait(
        lambda: [[row[0] for row in rows] for rows in _tables(page, CHANGED)] == [[CHANGED]], "the one that differs"
    )
    names, values = page.wait(lambda: _metrics(page), "the metrics")
    page.shot("mlflow-compare-differing")
    assert len(values) == 2 * len(names), (names, values)
    assert {"evaluate/anatomy_pass_share", "evaluate/fid_random_features"} <= set(names), names
    return {"parameters": len(parameters), "differing": sorted(differing), "metrics": names}


def _tables(page: Page, first: str) -> list[list[list[str]]]:
    """Rows of cells of the tables whose first cell is this."""
    rows = [
        [
            [cell.text.strip() for cell in row.find_elements(By.CSS_SELECTOR, "th, td")]
            for row in table.find_elements(By.TAG_NAME, "tr")
        ]
        for table in page.elements("table")
    ]
    return [table for table in rows if table and table[0][:1] == [first]]


def _metrics(page: Page) -> tuple[list[str], list[str]] | None:
    grids = [grid.text.split("\n") for grid in page.elements(".ReactVirtualized__Grid") if grid.text.strip()]
    return (grids[0], grids[1]) if len(grids) == 2 else None


def _mlflow_run(page: Page, services: local.Services, record: dict[str, Any]) -> dict[str, Any]:
    """A run's page: final figures of every stage, children, source with commit, dataset, model; and its artifacts."""
    address = local.mlflow_page(services, record["mlflow_experiment_id"], record["mlflow_run_id"])
    page.open(address)
    text = page.wait_for_text(
        "Metrics (",
        "Parameters (",
        "Logged models (1)",
        "evaluate/nearest_training_distance",
        "Child runs",
        "CT at 4 mm",
    )
    page.shot("mlflow-run")
    shown = text.split("\n")
    for stage in STAGES:
        for name, value in record["stages"][stage]["figures"].items():
            assert float(shown[shown.index(name) + 1]) == value, name
    assert {"checkpoint-global", "full-pipeline", *STAGES} <= {line.rstrip(",") for line in shown}, text
    page.click_text("Artifacts")
    page.click_text("report.html")
    page.wait(lambda: page.elements("iframe"), "the report in its frame")
    page.shot("mlflow-run-artifacts")
    return {"figures": sum(len(stage["figures"]) for stage in record["stages"].values())}


# -- the report -------------------------------------------------------------------------------------------------------


def _report(page: Page, path: Path) -> dict[str, Any]:
    """The report as a file: its headings, and every picture loaded."""
    page.open(path.as_uri())
    page.wait(lambda: page.elements("h2"), "headings")
    page.shot("report")
    headings = [element.text for element in page.elements("h2")]
    assert {"Provenance", "Repeat it"} <= set(headings), headings
    widths = [int(image.get_property("naturalWidth")) for image in page.elements("img")]  # type: ignore[arg-type]
    assert widths, "the report has no pictures"
    assert min(widths) > 0, widths
    page.driver.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    page.shot("report-end")
    return {"headings": headings, "pictures": len(widths)}
