"""Studies and trials in MLflow's pages, as a user sees them: in a real browser, on a real server.

    IMF_SCREENSHOTS=results/img python -m pytest -m slow tests/tune/tracking/test_mlflow_ui.py

stores the pictures that the README shows, `mlflow-studies.png` and `mlflow-comparison.png`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from browser import WAIT, open_browser
from mlflow.tracking import MlflowClient
from mlflow_server import mlflow_server
from small_search import run_search, write_graph

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

ASSISTANT = "//*[@data-component-id = 'mlflow.assistant.chat_panel.close']"
EXPAND = "//*[contains(@data-component-id, 'runnamecellrenderer')]"
STUDY = "//a[normalize-space(.) = '{}']"
TRIALS = "//a[starts-with(normalize-space(.), 'trial ')]"
PLOT = "//*[contains(@class, 'js-plotly-plot')]"
COLUMN = (
    "//span[contains(@class, 'tree-title') and normalize-space(.) = '{}']/ancestor::div[contains(@class, 'treenode')][1]"
    "//span[contains(@class, 'tree-checkbox')]"
)
STUDIES = {  # name -> settings that make it worse or better than the others
    "short": ("--trials", "2", "--set", "train.max_epochs=2"), "wide": ("--trials", "3", "--set", "model.dim=32"),
    "study": ("--trials", "5"),
}
CHECKBOX = "/ancestor::div[@role='row']//input[@type='checkbox' and contains(@aria-label, 'row selection')]"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database of three studies; the last one, `study`, has five trials."""
    home = tmp_path_factory.mktemp("ui")
    write_graph(home / "graph")
    for name, arguments in STUDIES.items():
        done = run_search(Path(__file__).parents[3], home, "--data", "graph", "--seeds", "2", "--study", name, "--scheduler",
                          "none", *arguments, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    return home / "results" / "mlflow.db"


@pytest.fixture(scope="module")
def server(database: Path) -> Iterator[str]:
    """Address of `mlflow server`, ended by its own handle."""
    with mlflow_server(database.parent, database) as address:
        yield address


@pytest.fixture
def browser() -> Iterator[Any]:
    with open_browser(1500, 1000) as driver:
        yield driver


def wait_for(browser: Any, xpath: str, count: int = 1) -> list[Any]:
    """At least so many elements of the page, when they are there."""
    from selenium.webdriver.support.ui import WebDriverWait

    found: list[Any] = WebDriverWait(browser, WAIT).until(
        lambda page: elements if len(elements := page.find_elements("xpath", xpath)) >= count else None
    )
    return found

def close_assistant(browser: Any) -> None:
    for panel in browser.find_elements("xpath", ASSISTANT):
        panel.click()


def photograph(browser: Any, name: str, folder: Path) -> None:
    picture = Path(os.environ.get("IMF_SCREENSHOTS") or folder) / name
    picture.parent.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(picture)) and picture.stat().st_size > 20_000


def choose_columns(browser: Any, *names: str) -> None:
    """Tick columns of the list of runs, or untick them, as a user does in its menu."""
    wait_for(browser, "//button[normalize-space(.) = 'Columns']")[0].click()
    box = wait_for(browser, "//input[@placeholder = 'Search columns']")[0]
    for name in names:
        box.send_keys(name)
        tick = wait_for(browser, COLUMN.format(name))[0]
        browser.execute_script("arguments[0].click()", tick)
        box.send_keys("\b" * len(name))
    box.send_keys("\ue00c")  # Escape


def test_studies_are_sorted_by_test_mrr_in_the_browser(server: str, browser: Any, tmp_path: Path) -> None:
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("imf-search").experiment_id
    studies = client.search_runs([experiment], "tags.role = 'study'", order_by=["metrics.test_mrr DESC"])
    assert {run.info.run_name for run in studies} == STUDIES.keys()
    figures = [run.data.metrics["test_mrr"] for run in studies]
    assert figures == sorted(figures, reverse=True) and len(set(figures)) == 3
    query = urlencode({"orderByKey": "metrics.`test_mrr`", "orderByAsc": "false", "searchFilter": "tags.role = 'study'"})
    browser.get(f"{server}/#/experiments/{experiment}/runs?{query.replace('+', '%20')}")
    wait_for(browser, STUDY.format("study"))
    close_assistant(browser)
    shown = ("test_mrr", "test_mrr_std", "baseline_test_mrr", "valid_mrr", "gain_over_control")
    choose_columns(browser, "Dataset", "Models", *shown)  # the first two are ticked, and go
    for column in shown:
        wait_for(browser, f"//*[@role = 'columnheader' and normalize-space(.) = '{column}']")
    for rank, run in enumerate(studies):
        row = f"//div[@role = 'row' and @row-index = '{rank}']"
        wait_for(browser, row + STUDY.format(run.info.run_name))
        cells = " ".join(cell.text for cell in browser.find_elements("xpath", row)).split()
        figures = {f"{float(cell):.3g}" for cell in cells if is_number(cell)}
        assert {f"{run.data.metrics[name]:.3g}" for name in shown} <= figures
    photograph(browser, "mlflow-studies.png", tmp_path)


def is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).isdigit()


def test_trials_are_compared_in_the_browser(server: str, browser: Any, tmp_path: Path) -> None:
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("imf-search").experiment_id
    trials = client.search_runs([experiment], "tags.role = 'trial' and tags.study = 'study'")
    assert len(trials) == 5
    browser.get(f"{server}/#/experiments/{experiment}/runs")
    wait_for(browser, EXPAND)
    close_assistant(browser)
    wait_for(browser, f"{STUDY.format('study')}/ancestor::div[@role='row']{EXPAND}")[0].click()
    names = {link.text for link in wait_for(browser, TRIALS, 5)}
    assert names == {f"trial {number:03d}" for number in range(5)}
    for number in range(5):
        box = wait_for(browser, f"//a[normalize-space(.) = 'trial {number:03d}']{CHECKBOX}")[0]
        browser.execute_script("arguments[0].click()", box)
    wait_for(browser, "//button[.//text()[contains(., 'Compare')]]")[0].click()
    wait_for(browser, "//*[contains(text(), 'Comparing 5 Runs')]")
    assert all(run.info.run_id in browser.current_url for run in trials)
    # Searched parameters and the metric are axes, of numbers where they are numbers: they are flat and typed.
    searched = {name for run in trials for name in run.data.params}
    wait_for(browser, f"{PLOT}//*[contains(@class, 'parcoords')]")
    titles = {title.text for title in browser.find_elements("css selector", ".parcoords .axis-title")}
    assert len(titles & searched) >= 2 and "mrr" in titles, titles
    ticks = [tick.text for tick in browser.find_elements("css selector", ".parcoords .tick text")]
    assert sum(tick.replace(".", "", 1).isdigit() for tick in ticks) >= 6, ticks
    photograph(browser, "mlflow-comparison.png", tmp_path)
    wait_for(browser, "//*[@role = 'tab' and contains(., 'Scatter Plot')]")[0].click()
    assert wait_for(browser, f"{PLOT}//*[contains(@class, 'ytick')]", 2)  # the points are on a canvas
