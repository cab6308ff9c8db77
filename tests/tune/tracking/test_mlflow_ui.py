"""The trials of a study beside each other in MLflow's pages, as a user sees them: in a real browser, on a real server.

    IMF_SCREENSHOT=results/img/mlflow-comparison.png python -m pytest -m slow tests/tune/tracking/test_mlflow_ui.py

stores the picture that the README shows.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from small_search import run_search, write_graph

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Without the ones about the network it tries to reach its maker's hosts.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1500,1000",
)
WAIT = 120  # seconds for a page
ASSISTANT = "[data-component-id='mlflow.assistant.chat_panel.close']"
EXPAND = "[data-component-id*='runnamecellrenderer']"
TRIALS = "//a[starts-with(normalize-space(.), 'trial ')]"
CHECKBOX = "/ancestor::div[@role='row']//input[@type='checkbox' and contains(@aria-label, 'row selection')]"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database of a study of five trials."""
    home = tmp_path_factory.mktemp("ui")
    write_graph(home / "graph")
    done = run_search(Path(__file__).parents[3], home, "--data", "graph", "--trials", "5", "--seeds", "1", "--study", "study",
                      "--scheduler", "none", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "results" / "mlflow.db"


@pytest.fixture(scope="module")
def server(database: Path) -> Iterator[str]:
    """Address of `mlflow server`, ended by its own handle."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}", "--host", "127.0.0.1",
               "--port", str(port), "--workers", "1"]
    with (database.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    if not BROWSER or not DRIVER:
        pytest.skip("no chromium and chromedriver here: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(service=webdriver.ChromeService(DRIVER), options=options)
    try:
        driver.set_page_load_timeout(WAIT)
        yield driver
    finally:
        driver.quit()


def test_trials_are_compared_in_the_browser(server: str, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def wait_for(kind: str, what: str, count: int = 1) -> list[Any]:
        found: list[Any] = WebDriverWait(browser, WAIT).until(
            lambda page: elements if len(elements := page.find_elements(kind, what)) >= count else None
        )
        return found

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("imf-search")
    assert experiment is not None
    trials = client.search_runs([experiment.experiment_id], "tags.role = 'trial'")
    assert len(trials) == 5
    browser.get(f"{server}/#/experiments/{experiment.experiment_id}/runs")
    wait_for(By.CSS_SELECTOR, EXPAND)
    for panel in browser.find_elements(By.CSS_SELECTOR, ASSISTANT):
        panel.click()
    wait_for(By.CSS_SELECTOR, EXPAND)[0].click()
    names = {link.text for link in wait_for(By.XPATH, TRIALS, 5)}
    assert names == {f"trial {number:03d}" for number in range(5)}
    for number in range(5):
        box = wait_for(By.XPATH, f"//a[normalize-space(.) = 'trial {number:03d}']{CHECKBOX}")[0]
        browser.execute_script("arguments[0].click()", box)
    wait_for(By.XPATH, "//button[.//text()[contains(., 'Compare')]]")[0].click()
    wait_for(By.XPATH, "//*[contains(text(), 'Comparing 5 Runs')]")
    assert all(run.info.run_id in browser.current_url for run in trials)
    # Searched parameters and the metric are axes, of numbers where they are numbers: they are flat and typed.
    searched = {name for run in trials for name in run.data.params}
    wait_for(By.CSS_SELECTOR, ".js-plotly-plot .parcoords")
    titles = {title.text for title in browser.find_elements(By.CSS_SELECTOR, ".parcoords .axis-title")}
    assert len(titles & searched) >= 2 and "mrr" in titles, titles
    ticks = [tick.text for tick in browser.find_elements(By.CSS_SELECTOR, ".parcoords .tick text")]
    assert sum(tick.replace(".", "", 1).isdigit() for tick in ticks) >= 6, ticks
    picture = Path(os.environ.get("IMF_SCREENSHOT") or tmp_path / "comparison.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(picture)) and picture.stat().st_size > 20_000
    wait_for(By.XPATH, "//*[@role = 'tab' and contains(., 'Scatter Plot')]")[0].click()
    assert len(wait_for(By.CSS_SELECTOR, ".js-plotly-plot .ytick", 2)) >= 2  # the points are drawn on a canvas
