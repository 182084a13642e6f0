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

import pandas as pd
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from medrefl_utils.core import PAIRS, RESPONSES, STEPS, Question, RunFiles, read_table, write_table
from medrefl_utils.views import explore_pairs, explore_responses, explore_trees, write_report
from tests.test_report import grown

pytestmark = pytest.mark.timeout(1200)  # minutes where other work has the cores
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no `chromium` on the PATH (Debian: apt-get install chromium)", allow_module_level=True)

expect.set_options(timeout=20_000)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
HOSTILE = "Step 1: <script>window.gotcha=1</script> <img src=x onerror=window.gotcha=2> **bold** $x^2$ </details> end\n"
# What the notebooks of the copy run with, so that all of it takes minutes.
SMALLER = {
    "03_pair_construction": {"max_reflection_pairs: int = 16": "max_reflection_pairs: int = 0"},
    "05_benchmark_evaluation": {
        "n_questions: int = 200": "n_questions: int = 40",
        "self_correction_questions: int = 16": "self_correction_questions: int = 4",
    },
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture(scope="module")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a small run; the first step of every path is hostile, and so are the pairs made of it."""
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
    command = ["run", "params/smoke.yaml", "--set", "shared.run=demo"]
    for name in ("01_tree_rollout.n_questions=24", "05_benchmark_evaluation.n_questions=40"):
        command += ["--set", name]
    # So few pairs must change some answers: the response browser has something to show.
    command += [
        "--set",
        "03_pair_construction.max_reflection_pairs=0",
        "--set",
        "03_pair_construction.n_evaluation_questions=40",
    ]
    command += ["--set", "05_benchmark_evaluation.self_correction_questions=4"]
    command += ["--set", "04_dpo_lora_4bit.epochs=4", "--set", "04_dpo_lora_4bit.learning_rate=0.01"]
    run = RunFiles(folder / "runs" / "demo")
    medrefl(folder, root, *command, "--only", "01")
    for part in run.steps.glob("*.parquet"):
        steps = read_table(part, STEPS)
        steps["text"] = steps["text"].mask(steps["depth"] == 1, HOSTILE)
        write_table(part, steps, STEPS)
    medrefl(folder, root, *command, "--from", "02")
    another(run, RunFiles(folder / "runs" / "other"))
    thousand_steps(folder / "runs" / "thousand")
    return folder


def another(run: RunFiles, other: RunFiles) -> None:
    """A second run: the same trees, three pairs of one kind, and two responses that became correct."""
    for name in ("questions.parquet", "values.parquet"):
        other.root.mkdir(exist_ok=True)
        shutil.copy(run.root / name, other.root / name)
    shutil.copytree(run.steps, other.steps)
    pairs, responses = read_table(run.pairs, PAIRS), read_table(run.responses, RESPONSES)
    write_table(other.pairs, pairs[pairs["kind"] == "reasoning"].head(3), PAIRS)
    greedy = responses[responses["protocol"] == "greedy"]
    asked = greedy[greedy["question_id"].isin(greedy["question_id"].unique()[:2])]
    asked = asked.assign(correct=asked["model"] == "medrefl", protocol="sampled")
    write_table(other.responses / "clinic.parquet", asked, RESPONSES)


def medrefl(folder: Path, root: Path, *words: str) -> None:
    command = [sys.executable, "-m", "medrefl_utils", *words]
    done = subprocess.run(command, cwd=folder, env=_environment(folder, root), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _environment(folder: Path, root: Path) -> dict[str, str]:
    """The user's own Jupyter settings have no part in it."""
    jupyter = {f"JUPYTER_{name}_DIR": str(folder / "jupyter" / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    lab = {
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "jupyter/settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "jupyter/work"),
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | jupyter | lab | {"PATH": path, "PYTHONPATH": str(root)}


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the screenshots go."""
    folder = tmp_path_factory.getbasetemp() / "screenshots"
    folder.mkdir(exist_ok=True)
    return folder


@dataclass
class Lab:
    """A running JupyterLab, and where its screenshots go."""

    address: str
    browser: Browser
    shots: Path

    def open(self, notebook: str) -> Page:
        """Open a notebook and wait for its kernel."""
        page = self.browser.new_page(viewport={"width": 1440, "height": 1800})
        page.goto(self.address.format(f"lab/workspaces/{Path(notebook).stem}/tree/{notebook}?reset"))
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
        # What is asked of a kernel that is just being connected may get lost.
        page.locator(".jp-StatusBar-Widget, #jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=90_000)
        page.wait_for_timeout(2000)
        return page

    def run_all(self, notebook: str) -> Page:
        """Open a notebook, run all its cells and wait until they are done; none may raise."""
        page = self.open(notebook)
        prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
        deadline = time.monotonic() + 900
        # A menu that is not ready yet does nothing.
        while not any(re.search(r"[\d*]", text) for text in prompts.all_inner_texts()):
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

    def theme(self, name: str) -> None:
        """Choose JupyterLab's theme for the pages that are opened from now on."""
        page = self.browser.new_page()
        settings = self.address.format("lab/api/settings/@jupyterlab/apputils-extension:themes?").replace("?&", "?")
        done = page.request.put(settings, data=json.dumps({"raw": json.dumps({"theme": name})}))
        assert done.ok, done.text()
        page.close()

    def shot(self, part: Page | Locator, name: str) -> None:
        part.screenshot(path=self.shots / f"{name}.png")


@pytest.fixture(scope="module")
def lab(checkout: Path, root: Path, browser: Browser, shots: Path) -> Iterator[Lab]:
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
        deadline = time.monotonic() + 300
        while not known:
            assert server.poll() is None and time.monotonic() < deadline, (checkout / "lab.log").read_text()
            known = list((checkout / "jupyter/runtime").glob("jpserver-*.json"))
            time.sleep(0.2)
        time.sleep(0.5)
        address = json.loads(known[0].read_text())["url"] + "{}&token=medrefl"
        yield Lab(address, browser, shots)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(120)


def cell_of(page: Page, call: str) -> Locator:
    """The cell whose code is this call, its output with it."""
    cell = page.locator(".jp-CodeCell", has=page.locator(".jp-InputArea", has_text=call))
    cell.scroll_into_view_if_needed()
    return cell


def pane(cell: Locator, label: str) -> Locator:
    return cell.locator(f'.medrefl-pane[aria-label="{label}"]')


def nothing_ran(page: Page) -> None:
    """The hostile text of a model is text: no script of it ran, no element of it exists, nothing became a formula."""
    assert page.evaluate("window.gotcha") is None
    assert page.locator("img[src=x]").count() == 0
    assert page.locator(".medrefl mjx-container, .medrefl .MathJax, .medrefl strong").count() == 0


def test_pairs_are_filtered_and_read_in_notebook_03(lab: Lab) -> None:
    page = lab.run_all("notebooks/03_pair_construction.ipynb")
    cell = cell_of(page, "explore_pairs")
    pair, tree = pane(cell, "pair"), pane(cell, "tree")
    expect(pair.locator("h4").first).to_contain_text(
        re.compile(r"Pair [0-9a-f]{16}, reasoning: S\(chosen\) − S\(rejected\) = \+")
    )
    expect(pair).to_contain_text("<script>window.gotcha=1</script> <img src=x onerror=window.gotcha=2> **bold** $x^2$")
    nothing_ran(page)

    cell.locator("select").nth(1).select_option("reflection_post")
    expect(pair.locator("h4").first).to_contain_text("reflection post")
    expect(pair.locator(".reflection")).to_have_count(2)
    shared, sides = pair.locator(".shared"), pair.locator(".side")
    expect(shared).to_be_visible()
    assert shared.evaluate("e => getComputedStyle(e).color") == "rgb(102, 102, 102)"
    assert pair.locator(".parts").inner_text() == "◆ the two sides diverge here"
    chosen, rejected = (sides.nth(side).bounding_box() for side in (0, 1))
    assert chosen["y"] == rejected["y"] and chosen["x"] + chosen["width"] <= rejected["x"], "not side by side"
    expect(tree.locator(".node.left").first).to_be_attached()
    assert tree.locator(".node.chosen").count() and tree.locator(".node.rejected").count()
    lab.shot(cell, "03_pairs")

    before = cell.locator("select").nth(2).locator("option").count()
    cell.get_by_placeholder("search pairs").fill("no pair says this")
    expect(cell.get_by_text(f"0 of {before} pairs")).to_be_visible()

    cell.get_by_placeholder("search pairs").fill("")
    another_run(cell, "pairs", 3)
    expect(pair.locator("h4").first).to_contain_text("reasoning")
    page.close()


def test_a_question_a_step_and_a_pair_are_chosen_in_notebook_02(lab: Lab) -> None:
    page = lab.run_all("notebooks/02_step_valuation.ipynb")
    cell = cell_of(page, "explore_trees")
    tree, detail, pair = (pane(cell, name) for name in ("tree", "step", "pair"))
    assert cell.locator("select").first.input_value() == "demo"  # the run that `make demo` makes
    questions = cell.locator("select").nth(1)
    expect(questions.locator("option")).to_have_count(24)
    expect(detail).to_contain_text("Most confusing wrong path: S = ")

    stem = questions.locator("option").nth(2).inner_text().split("✗")[1].split("…")[0].strip()
    questions.select_option(index=2)
    expect(detail.locator(".question").first).to_contain_text(stem)

    leaf = tree.locator(".node", has_text="✗").first
    leaf.click()
    expect(detail.locator("h4").first).to_contain_text(leaf.get_attribute("data-pick").replace("node:", "Step "))
    expect(detail).to_contain_text("Outcome −1; stop reason: answer")
    expect(detail.locator("table.actions")).to_contain_text("✓ effective")
    assert leaf.get_attribute("aria-selected") == "true"
    first = tree.locator(".node").nth(1)
    first.click()
    expect(detail).to_contain_text(
        "<script>window.gotcha=1</script> <img src=x onerror=window.gotcha=2> **bold** $x^2$"
    )
    nothing_ran(page)

    page.keyboard.press("Home")
    expect(detail).to_contain_text("Best correct path: S = ")
    page.keyboard.press("ArrowRight")
    expect(detail.locator("h4").first).to_contain_text("Step 1, depth 1")
    page.keyboard.press("ArrowRight")
    expect(detail.locator("h4").first).to_contain_text("depth 2")
    page.keyboard.press("ArrowLeft")
    expect(detail.locator("h4").first).to_contain_text("Step 1, depth 1")
    assert page.evaluate("document.activeElement.dataset.pick") == "node:1"
    page.keyboard.press("Home")

    link = detail.locator("button.pick", has_text="reasoning").first
    link.click()
    expect(pair.locator("h4").first).to_contain_text(link.get_attribute("data-pick").replace("pair:", "Pair "))
    expect(pair.locator(".side")).to_have_count(2)
    for side, end, other in (("chosen", "✓", "✗"), ("rejected", "✗", "✓")):  # each path ends at a leaf of its own kind
        assert tree.locator(f".edge.{side}").count() > 0 and tree.locator(f".node.{side}", has_text=end).count() == 1
        assert tree.locator(f".node.{side}", has_text=other).count() == 0
    lab.shot(cell, "02_trees")

    cell.get_by_placeholder("search questions").fill(stem[:20])
    expect(cell.get_by_text(re.compile(r"^[1-9] of 24 questions"))).to_be_visible()
    page.close()


def test_a_tree_of_a_thousand_steps_answers_at_once(lab: Lab, checkout: Path) -> None:
    page = lab.run_all("notebooks/02_step_valuation.ipynb")
    cell = cell_of(page, "explore_trees")
    tree, detail = pane(cell, "tree"), pane(cell, "step")
    cell.locator("select").first.select_option("thousand")
    expect(tree.locator(".node")).to_have_count(1023)
    seconds = []
    for node in (900, 1000, 700):
        start = time.monotonic()
        tree.locator(f'[data-pick="node:{node}"]').click()
        expect(detail.locator("h4").first).to_contain_text(f"Step {node}, depth 9")
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 2, seconds  # a click of the driver's own takes tenths of one
    lab.shot(cell, "02_thousand")
    page.close()


def thousand_steps(run: Path) -> None:
    n = 1023
    half = range(n // 2, n)
    steps = pd.DataFrame({"question_id": "big", "node_id": range(n), "weight": 1, "n_tokens": 3, "logprob": -1.0})
    steps["parent_id"] = [None, *[(i - 1) // 2 for i in range(1, n)]]
    steps["depth"] = [(i + 1).bit_length() - 1 for i in range(n)]
    steps["kind"] = ["root"] + ["step"] * (n // 2 - 1) + ["leaf"] * len(half)
    steps["text"] = [f"Step {i} of many." for i in range(n)]
    steps["answer"] = [None] * (n // 2) + ["AB"[i % 3 > 0] for i in half]
    steps["outcome"] = [float("nan")] * (n // 2) + [1.0 - 2.0 * (i % 3 > 0) for i in half]
    steps["stop"], steps["token_ids"] = [None] * (n // 2) + ["answer"] * len(half), None
    grown(run, [Question("big", "How big?", {"A": "a", "B": "b"}, "A")], steps)


def test_what_changed_is_read_in_notebook_05(lab: Lab) -> None:
    page = lab.run_all("notebooks/05_benchmark_evaluation.ipynb")
    cell = cell_of(page, "explore_responses")
    answers = pane(cell, "answers")
    changed = cell.get_by_role("button", name=re.compile(r"(wrong → right|right → wrong) \([1-9]\d*\)")).first
    name, number = re.fullmatch(r"(.*) \((\d+)\)", changed.inner_text()).groups()
    before, after = ("✗ base", "✓ Med-REFL") if name == "wrong → right" else ("✓ base", "✗ Med-REFL")
    changed.click()
    expect(answers.locator(".side")).to_have_count(2)
    expect(answers.locator(".side").nth(0).locator("h4")).to_contain_text(before)
    expect(answers.locator(".side").nth(1).locator("h4")).to_contain_text(after)
    expect(answers.locator(".question .gold")).to_contain_text("✓")
    expect(cell.get_by_text(f"{number} of {number} responses")).to_be_visible()
    listed, active = cell.locator("select").nth(2), cell.locator("button.mod-active")
    expect(listed.locator("option", has_text="sampled")).not_to_have_count(0)
    cell.locator("select").nth(1).select_option("greedy")
    expect(listed.locator("option", has_text="sampled")).to_have_count(0)
    number = re.fullmatch(rf"{name} \((\d+)\)", active.inner_text()).group(1)  # the change that was chosen
    expect(cell.get_by_text(f"{number} of {number} responses")).to_be_visible()
    expect(listed.locator("option", has_text="greedy")).to_have_count(int(number))
    lab.shot(cell, "05_responses")
    another_run(cell, "responses", 2)
    page.close()


def another_run(cell: Locator, what: str, n: int) -> None:
    """Choose the run ``other``, which has ``n`` of them; the run that has only trees is not offered."""
    runs = cell.locator("select").first
    assert runs.locator("option").all_inner_texts() == ["demo", "other"]
    runs.select_option("other")
    expect(cell.get_by_text(f"{n} of {n} {what}")).to_be_visible()


def test_in_the_dark_theme_all_is_readable(lab: Lab) -> None:
    lab.theme("JupyterLab Dark")
    try:
        page = lab.run_all("notebooks/02_step_valuation.ipynb")
        cell = cell_of(page, "explore_trees")
        tree, detail = pane(cell, "tree"), pane(cell, "step")
        expect(detail).to_contain_text("Most confusing wrong path")
        lab.shot(cell, "02_dark")
        for part in (detail.locator("h4").first, detail.locator(".question").first, detail.locator(".dim").first):
            assert part.evaluate(CONTRAST) > 4.5, part.inner_text()
        for name in ("chosen", "rejected", "both", "left"):
            line = cell.locator(f".legend .line.{name}")
            assert line.evaluate(CONTRAST, "borderTopColor") > 3, name
        for name in ("chosen", "rejected"):
            assert tree.locator(f".edge.{name}").first.evaluate(CONTRAST, "stroke") > 3, name
        page.close()
    finally:
        lab.theme("JupyterLab Light")


# The WCAG contrast of a part's colour with the first background below it that is not transparent.
CONTRAST = """(part, name) => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (text) => rgb(text).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  let below = part;
  while (rgb(getComputedStyle(below).backgroundColor)[3] === 0) below = below.parentElement;
  const both = [light(getComputedStyle(part)[name ?? "color"]), light(getComputedStyle(below).backgroundColor)];
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""


def test_an_executed_notebook_has_the_twin_and_no_widget_box(lab: Lab, checkout: Path, root: Path) -> None:
    command = [sys.executable, "-m", "papermill", "notebooks/02_step_valuation.ipynb", "notebooks/executed.ipynb"]
    done = subprocess.run(command, cwd=checkout, env=_environment(checkout, root), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = lab.open("notebooks/executed.ipynb")
    cell = cell_of(page, "explore_trees")
    expect(cell.locator(".medrefl > details")).to_have_count(3)
    expect(cell.locator(".medrefl .tree").first).to_be_visible()
    expect(cell).to_contain_text("<script>window.gotcha=1</script> <img src=x onerror=window.gotcha=2> **bold** $x^2$")
    badge = cell.locator(".medrefl .v", has_text="✗").first
    assert badge.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(217, 95, 2)"
    assert page.locator(".jupyter-widgets").count() == 0 and page.get_by_text("Error displaying widget").count() == 0
    nothing_ran(page)
    assert cell.locator("style").count() == 0, "the notebook is untrusted, so JupyterLab drops the style"
    side = cell.locator(".medrefl table td div").first  # JupyterLab aligns cells right
    assert side.evaluate("e => getComputedStyle(e).textAlign").endswith("left")
    is_a_tree(cell)
    lab.shot(cell, "02_executed")
    page.close()


def is_a_tree(place: Page | Locator) -> None:
    """Each level of the first open tree is further to the right than the one above it, and each step on a new line."""
    steps = place.locator("details[open] details[open] > summary")
    boxes = [steps.nth(i).bounding_box() for i in range(min(steps.count(), 6))]
    deeper = place.locator("details[open] details[open] details[open] > summary").first.bounding_box()
    assert boxes and deeper["x"] > boxes[0]["x"] + 5
    assert all(below["y"] >= above["y"] + 10 for above, below in zip(boxes, boxes[1:], strict=False))


def test_on_github_the_structure_is_left(checkout: Path, browser: Browser, shots: Path) -> None:
    """GitHub and nbviewer drop <style> and nearly all attributes: what is left must still be a tree, and two sides."""
    run = RunFiles(checkout / "runs" / "demo")
    bare = browser.new_page(viewport={"width": 1000, "height": 1400})
    for name, explore in (("trees", explore_trees), ("pairs", explore_pairs), ("responses", explore_responses)):
        html = re.sub(r"<style>.*?</style>", "", explore(run, live=False).data, flags=re.DOTALL)
        html = re.sub(r' (class|style|title|role)="[^"]*"', "", html)
        bare.set_content(html)
        assert bare.evaluate("document.querySelectorAll('[class], [style], style').length") == 0
        if name == "trees":
            is_a_tree(bare)
        else:
            sides = bare.locator("details[open] td")
            chosen, rejected = (sides.nth(side).bounding_box() for side in (0, 1))
            assert chosen["y"] == rejected["y"] and chosen["x"] + chosen["width"] <= rejected["x"] + 1
            assert "\n" in sides.nth(0).locator("div").inner_text().strip()  # its steps are lines
        bare.screenshot(path=shots / f"github_{name}.png")
    bare.close()


@pytest.mark.parametrize(("name", "width"), [("phone", 390), ("desktop", 1280)])
def test_the_report_fits_its_screen(checkout: Path, browser: Browser, shots: Path, name: str, width: int) -> None:
    run = RunFiles(checkout / "runs" / "demo")
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(write_report(run, note="A note").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width, "it scrolls sideways"
    wide = "e => [...document.querySelectorAll('main *')].filter(e => !e.closest('figure, .scroll, pre')"
    wide += " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 200))"
    assert page.evaluate(wide) == [], "cut off at the right"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    expect(page.get_by_role("heading", name="Corrected answer")).to_be_visible()
    for kind in ("reasoning", "reflection mid", "reflection post", "random cot"):
        expect(page.get_by_role("heading", name=f"Pair: {kind}")).to_be_visible()
    expect(page.locator("#examples")).to_contain_text("<script>window.gotcha=1</script> <img src=x onerror")
    nothing_ran(page)
    assert page.locator(".verdict").first.bounding_box()["y"] < 400
    assert page.get_by_alt_text("Accuracy of base and adapter").bounding_box()["y"] < 900  # the first screen
    for plot in page.locator("figure .scroll").all():
        is_cut = plot.evaluate("e => e.scrollWidth > e.clientWidth + 1")
        said = plot.locator("xpath=../figcaption").evaluate("e => getComputedStyle(e, '::after').content")
        assert not is_cut or "scroll sideways" in said
    first = page.locator(".tree details:not([open]) > summary").first
    if first.count():
        first.click()
        expect(first.locator("xpath=..")).to_have_attribute("open", "")
    page.screenshot(path=shots / f"report_{name}.png", full_page=True)
    page.emulate_media(color_scheme="dark")
    for part in ("h1", ".verdict", ".dim", "nav a", "#results td", ".medrefl .shared", ".medrefl .side"):
        assert page.locator(part).first.evaluate(CONTRAST) > 4.5, part
    page.screenshot(path=shots / f"report_{name}_dark.png")
    if name == "desktop":
        page.pdf(path=shots / "report.pdf", format="A4")
    page.close()
