"""JupyterLab and the report in a real browser: what a person sees, clicks and reads.

Debian's Chromium is driven by playwright; screenshots land in ``screenshots/`` of pytest's
temporary folder (``--basetemp``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from medrefl_utils.records import STEPS, RunFiles
from medrefl_utils.store import read_table, write_table

pytestmark = pytest.mark.timeout(420)
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no `chromium` on the PATH (Debian: apt-get install chromium)", allow_module_level=True)

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
HOSTILE = "Step 1: <script>window.gotcha=1</script> <img src=x onerror=window.gotcha=2> **bold** $x^2$ </details> end\n"
# What the notebooks of the copy run with, so that all of it takes minutes.
SMALLER = {
    "04_dpo_lora_4bit": {"learning_rate: float = 0.0003": "learning_rate: float = 0.01"},  # so that answers change
    "05_benchmark_evaluation": {"n_questions: int = 100": "n_questions: int = 40"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture(scope="module")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose run has trees: those of the first stage, one step of the first question being hostile."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("notebooks", "params"):
        shutil.copytree(root / name, folder / name)
    (folder / "medrefl_utils").symlink_to(root / "medrefl_utils")
    for name, changes in SMALLER.items():
        notebook = folder / "notebooks" / f"{name}.ipynb"
        text = notebook.read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        notebook.write_text(text)
    command = [sys.executable, "-m", "medrefl_utils", "run", "params/smoke.yaml", "--only", "01"]
    command += ["--set", "shared.run=interactive", "--set", "01_tree_rollout.n_questions=24"]
    done = subprocess.run(command, cwd=folder, env=_environment(folder, root), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFiles(folder / "runs" / "interactive")
    for part in run.steps.glob("*.parquet"):
        steps = read_table(part, STEPS)
        steps["text"] = steps["text"].mask(steps["depth"] == 1, HOSTILE)
        write_table(part, steps, STEPS)
    return folder


def _environment(folder: Path, root: Path) -> dict[str, str]:
    """The user's own Jupyter settings have no part in it."""
    jupyter = {f"JUPYTER_{name}_DIR": str(folder / "jupyter" / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    lab = {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "jupyter/settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "jupyter/work"),
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | jupyter | lab | {"PATH": path, "PYTHONPATH": str(root)}


@dataclass
class Lab:
    """A running JupyterLab, and where its screenshots go."""

    address: str
    browser: Browser
    shots: Path

    def run_all(self, notebook: str) -> Page:
        """Open a notebook, run all its cells and wait until they are done; none may raise."""
        page = self.browser.new_page(viewport={"width": 1440, "height": 1200})
        name = Path(notebook).stem
        page.goto(self.address.format(f"lab/workspaces/{name[:2]}/tree/{notebook}"))
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
        # What is asked of a kernel that is just being connected may get lost.
        page.locator(".jp-StatusBar-Widget, #jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=90_000)
        page.wait_for_timeout(2000)
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
        deadline = time.monotonic() + 300
        while not any(text.strip() for text in prompts.all_inner_texts()):  # a menu that is not ready yet does nothing
            assert time.monotonic() < deadline
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).first.click()
            page.wait_for_timeout(1500)
        while not all(re.fullmatch(r"\[\d+\]:", text.strip()) for text in prompts.all_inner_texts()):
            error = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
            assert not error.count(), error.first.inner_text()
            assert time.monotonic() < deadline, prompts.all_inner_texts()
            page.wait_for_timeout(300)
        return page

    def shot(self, part: Page | Locator, name: str) -> None:
        part.screenshot(path=self.shots / f"{name}.png")


@pytest.fixture(scope="module")
def lab(checkout: Path, root: Path, browser: Browser) -> Iterator[Lab]:
    config = checkout / "jupyter/config/labconfig/page_config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
    settings = checkout / "jupyter/settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"windowingMode": "none"}))  # every cell is on the page, seen or not
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.port=0"]
    command += ["--IdentityProvider.token=medrefl", f"--ServerApp.root_dir={checkout}"]
    with open(checkout / "lab.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=checkout, env=_environment(checkout, root), stdout=log, stderr=log, start_new_session=True
        )
    try:
        known: list[Path] = []
        deadline = time.monotonic() + 60
        while not known:
            assert server.poll() is None and time.monotonic() < deadline, (checkout / "lab.log").read_text()
            known = list((checkout / "jupyter/runtime").glob("jpserver-*.json"))
            time.sleep(0.2)
        time.sleep(0.5)
        address = json.loads(known[0].read_text())["url"] + "{}?token=medrefl"
        shots = checkout.parent / "screenshots"
        shots.mkdir(exist_ok=True)
        yield Lab(address, browser, shots)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def test_the_pair_browser_in_notebook_03(lab: Lab) -> None:
    page = lab.run_all("notebooks/03_pair_construction.ipynb")
    lab.shot(page, "03")
    page.wait_for_timeout(1000)
    out = page.locator(".jp-Cell", has=page.locator(".medrefl-pane")).last
    out.scroll_into_view_if_needed()
    lab.shot(out, "03_pairs")
    page.close()


def test_the_tree_explorer_in_notebook_02(lab: Lab) -> None:
    page = lab.run_all("notebooks/02_step_valuation.ipynb")
    page.wait_for_timeout(1000)
    out = page.locator(".jp-Cell", has=page.locator(".medrefl-pane")).last
    out.scroll_into_view_if_needed()
    lab.shot(out, "02_trees")
    page.close()


def test_the_response_browser_in_notebook_05(lab: Lab) -> None:
    page = lab.run_all("notebooks/05_benchmark_evaluation.ipynb")
    page.wait_for_timeout(1000)
    out = page.locator(".jp-Cell", has=page.locator(".medrefl-pane")).last
    out.scroll_into_view_if_needed()
    lab.shot(out, "05_responses")
    page.close()
