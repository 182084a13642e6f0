"""The chain over real notebooks: what runs, what is skipped and why, what a failure leaves, what is recorded."""

from __future__ import annotations

import datetime
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from papermill.exceptions import PapermillExecutionError

import medrefl_utils
from medrefl_utils.core import MedReflError, RunFiles, content_hash, record_stage
from medrefl_utils.runs import StageFailed, chain, provenance, stages
from medrefl_utils.runs.execution import Progress
from tests import toy

SHARED = {"run": "t", "seed": 5}
ALL = ["01_count", "02_double", "03_tell"]
EXPECTED = f"expected a number, a part of the name of one of {', '.join(ALL)}, or what it makes"


@pytest.fixture(scope="module")
def _finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = toy.checkout(tmp_path_factory.mktemp("finished"))
    executed, printed = toy.run(root)
    assert executed == ALL
    return root, printed


@pytest.fixture
def finished(_finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of a checkout whose chain has run once."""
    return shutil.copytree(_finished[0], tmp_path / "checkout")


def manifest(root: Path) -> dict:
    return json.loads((root / "runs/t/manifest.json").read_text())


def why(root: Path, *overrides: str, **options: object) -> dict[str, str]:
    """{stage: reason} of a dry run; only those that would run."""
    lines = toy.run(root, *overrides, dry_run=True, **options)[1].splitlines()
    return {w[0]: " ".join(w[2:]) for line in lines if len(w := line.split()) > 2 and w[1] == "run"}


def test_run_leaves_all_artifacts_and_says_each_stage(_finished: tuple[Path, str]) -> None:
    root, printed = _finished
    folder = root / "runs/t"
    assert (folder / "questions.parquet").read_text() == "0\n1\n2\n3"
    assert (folder / "values.parquet").read_text() == "0\n1\n2\n30\n1\n2\n3"
    assert (folder / "steps/0.txt").read_text() == "0 5|1 5|2 5|3 5"
    for name in ALL:
        executed = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
        assert all(c.execution_count for c in executed.cells if c.cell_type == "code")
        assert f"{name} … done in " in printed
    assert "counting: 100%" in printed, "the notebook's own bar reaches the terminal"
    assert "report: " in printed


def test_what_will_run_is_looked_at_before_it_starts_and_what_is_unchanged_is_not(finished: Path) -> None:
    looked: list[tuple[list[str], set[str]]] = []

    def refuse(stages: dict, files: RunFiles, given: set[str]) -> None:
        looked.append((list(stages), given))
        assert stages["02_double"]["loud"] and files.root == finished / "runs/t"
        raise MedReflError("no room")

    assert toy.run(finished, preflight=refuse)[0] == [] and not looked
    before = manifest(finished)
    with pytest.raises(MedReflError, match="^no room$"):
        toy.run(finished, "02_double.loud=true", preflight=refuse)
    assert looked == [(["02_double", "03_tell"], {"questions", "steps"})]
    assert manifest(finished) == before


def test_kernel_is_this_interpreter_with_quiet_openmp(_finished: tuple[Path, str]) -> None:
    assert (_finished[0] / "runs/t/report.html").read_text().split()[1:] == [sys.executable, "0"]


def test_manifest_holds_what_a_reader_needs(_finished: tuple[Path, str]) -> None:
    root, _ = _finished
    found = manifest(root)
    assert found["run"] == "t"
    assert found["profile"].endswith("params/toy.yaml")
    assert found["seeds"] == {"01_count": {"seed": 5}, "02_double": {"seed": 5}}
    assert found["parameters"]["01_count"] == {
        "run": "runs/t", "seed": 5, "n": 4, "rate": 1.0, "names": ["a", "b"], "data": "",
    }  # fmt: skip
    assert set(found["versions"]) >= {"medrefl", "torch", "transformers", "trl", "peft", "papermill", "pandas"}
    assert found["versions"]["medrefl"] == medrefl_utils.__version__
    assert found["machine"]["python"].startswith("3.") and found["machine"]["cores"] >= 1
    assert found["git"] == {"revision": None, "dirty": None}
    first, second = found["stages"]["01_count"], found["stages"]["02_double"]
    assert first["tokens"] == 28 and first["figures"] == {"n": 4} and first["seconds"] > 0
    assert first["outputs"] == {
        "questions.parquet": content_hash(root / "runs/t/questions.parquet"),
        "steps": content_hash(root / "runs/t/steps"),
    }
    assert second["inputs"] == first["outputs"]


def test_second_run_executes_nothing_and_changes_nothing(finished: Path) -> None:
    before = content_hash(finished / "runs")
    executed, printed = toy.run(finished)
    assert executed == []
    assert [line for line in printed.splitlines() if "unchanged, skipped" in line] == [
        f"{name} … unchanged, skipped" for name in ALL
    ]
    assert content_hash(finished / "runs") == before


def test_dry_run_of_an_unchanged_chain_runs_nothing(finished: Path) -> None:
    assert why(finished) == {}


def test_dry_run_in_a_fresh_checkout_leaves_no_file(tmp_path: Path) -> None:
    root = toy.checkout(tmp_path)
    assert why(root) == {name: "new" for name in ALL}
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (
            lambda r: toy.profile(r, {"shared": SHARED, "01_count": {"n": 6}}),
            {
                "01_count": "n: 4 -> 6",
                "02_double": "unless 01_count writes the same as before",
                "03_tell": "unless 02_double writes the same as before",
            },
        ),
        (
            lambda r: toy.profile(r, {"shared": SHARED, "01_count": {"n": 4}, "02_double": {"loud": True}}),
            {"02_double": "loud: False -> True", "03_tell": "unless 02_double writes the same as before"},
        ),
        (
            lambda r: (r / "toy/count.py").write_text("from .shared import word\nnumbers = list"),
            {
                "01_count": "code changed: count.py",
                "02_double": "unless 01_count writes the same as before",
                "03_tell": "unless 02_double writes the same as before",
            },
        ),
        (
            lambda r: (r / "toy/shared.py").write_text(toy.PACKAGE["toy/shared.py"] + "MORE = 1\n"),
            {
                "01_count": "code changed: shared.py",
                "02_double": "unless 01_count writes the same as before",
                "03_tell": "unless 02_double writes the same as before",
            },
        ),
        (lambda r: (r / "toy/shared.py").write_text(toy.PACKAGE["toy/shared.py"] + "# a comment\n"), {}),
        (lambda r: (r / "toy/shared.html.j2").write_text("x"), None),
        (lambda r: (r / "toy/alone.py").write_text("changed = 1"), {}),
        (lambda r: (r / "runs/t/report.html").unlink(), {"03_tell": "output missing: report.html"}),
        (lambda r: (r / "runs/t/report.html").write_text("x"), {"03_tell": "output changed: report.html"}),
        (
            lambda r: (r / "runs/t/values.parquet").write_text("x"),
            {
                "02_double": "output changed: values.parquet",
                "03_tell": "unless 02_double writes the same as before",
            },
        ),
        (
            lambda r: toy.notebook(r / "notebooks/03_tell.ipynb", toy.PARAMETERS["03_tell"], ["import toy.shared"]),
            {"03_tell": "notebook changed"},
        ),
        (
            lambda r: record_stage(RunFiles(r / "runs/t"), "03_tell", [r / "runs/t/report.html"], {}),
            {"03_tell": "run by hand since"},
        ),
    ],
)  # fmt: skip
def test_dry_run_tells_what_would_run_and_why(finished: Path, change: object, reasons: dict[str, str] | None) -> None:
    change(finished)
    found = why(finished)
    if reasons is None:  # a data file named like a module counts as its code
        assert found["01_count"] == "code changed: shared.html.j2"
    else:
        assert found == reasons


def test_prose_in_a_notebook_starts_nothing(finished: Path) -> None:
    path = finished / "notebooks/01_count.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[0].source = "# Another title"
    nbformat.write(book, path)
    assert why(finished) == {}


def test_a_file_named_by_a_parameter_counts_by_content(finished: Path) -> None:
    (finished / "exam.jsonl").write_text("one")
    assert toy.run(finished, "01_count.data=exam.jsonl")[0] == ["01_count"]
    assert why(finished, "01_count.data=exam.jsonl") == {}
    (finished / "exam.jsonl").write_text("two")
    assert why(finished, "01_count.data=exam.jsonl")["01_count"] == "file changed: exam.jsonl"


def test_a_stage_that_writes_the_same_bytes_starts_nothing_below(finished: Path) -> None:
    assert toy.run(finished, "01_count.rate=0.5")[0] == ["01_count"]


def test_a_changed_stage_runs_with_all_below(finished: Path) -> None:
    assert toy.run(finished, "01_count.n=2")[0] == ALL
    assert (finished / "runs/t/values.parquet").read_text() == "0\n10\n1"


def test_force_from_and_only(finished: Path) -> None:
    for name in ("02", "2", "double", "02_double"):
        assert toy.run(finished, only=name, force=True)[0] == ["02_double"]
    assert toy.run(finished, start="02_double", force=True)[0] == ["02_double", "03_tell"]
    assert toy.run(finished, start="02_double")[0] == []
    assert why(finished, force=True) == dict.fromkeys(ALL, "forced")


def test_from_takes_what_is_above_as_it_is(finished: Path) -> None:
    assert why(finished, "01_count.n=9", start="02_double") == {}


def test_only_needs_its_inputs(tmp_path: Path) -> None:
    root = toy.checkout(tmp_path)
    with pytest.raises(
        MedReflError, match=r"^02_double reads runs/t/questions.parquet, which is missing: 01_count makes it$"
    ):
        toy.run(root, only="02_double")
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "02_duble"}, f"--only 02_duble: no such stage (did you mean '02_double'?): {EXPECTED}"),
        ({"start": "9"}, f"--from 9: no such stage: {EXPECTED}"),
        ({"start": "0"}, "--from 0: can mean 01_count or 02_double or 03_tell: give more of the name"),
        ({"only": "train"}, f"--only train: no such stage: {EXPECTED}"),
        ({"start": "01", "only": "02"}, "--from and --only exclude each other: give one of them"),
    ],
)  # fmt: skip
def test_wrong_stage_names(finished: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(MedReflError) as caught:
        toy.run(finished, **options)
    assert str(caught.value) == message


def test_outputs_of_other_parameters_are_removed_before_a_stage_runs(finished: Path) -> None:
    (finished / "runs/t/steps/9.txt").write_text("a shard of an earlier, larger run")
    toy.run(finished, "01_count.n=2", only="01")
    assert [p.name for p in (finished / "runs/t/steps").iterdir()] == ["0.txt"]


def test_a_failed_stage_keeps_its_error_and_its_parts(tmp_path: Path) -> None:
    bodies = {"01_count": [toy.BODIES["01_count"][0], toy.BODIES["01_count"][1], "def f():\n    return 1 / 0\nf()"]}
    root = toy.checkout(tmp_path, bodies)
    with pytest.raises(StageFailed) as caught:
        toy.run(root)
    error = caught.value
    assert (error.name, error.message) == ("ZeroDivisionError", "division by zero")
    assert error.notebook == root / "runs/t/notebooks/01_count.ipynb" and error.notebook.exists()
    assert len(error.frames) == 2 and "f()" in error.frames[0] and "return 1 / 0" in error.frames[1]
    # The parts are kept for a rerun with the same key ...
    assert (root / "runs/t/steps/0.txt").exists()
    assert why(root)["01_count"] == "was interrupted"
    assert not (root / "runs/t/values.parquet").exists()


def test_a_stage_that_forgets_to_record_is_an_error(tmp_path: Path) -> None:
    root = toy.checkout(tmp_path, {"01_count": toy.BODIES["01_count"][:2]})
    with pytest.raises(StageFailed, match="without recording questions.parquet"):
        toy.run(root)


def test_a_dead_kernel_is_told(tmp_path: Path) -> None:
    root = toy.checkout(tmp_path, {"01_count": ["import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"]})
    with pytest.raises(StageFailed, match="the kernel died"):
        toy.run(root)


def test_upstream_makes_what_is_missing_when_a_notebook_is_opened_alone(tmp_path: Path) -> None:
    """In a kernel that no chain started, as JupyterLab starts it: with a running event loop."""
    root = toy.checkout(tmp_path)
    script = "\n".join(
        [
            "import papermill",
            "papermill.execute_notebook('notebooks/02_double.ipynb', 'out.ipynb', kernel_name='python3', cwd='.')",
        ]
    )
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, capture_output=True, timeout=120)
    text = (root / "out.ipynb").read_text()
    assert "runs/interactive has no questions.parquet yet: running 01_count with default parameters" in text
    assert (root / "runs/interactive/values.parquet").read_text() == "0\n1\n20\n1\n2"
    stages = json.loads((root / "runs/interactive/manifest.json").read_text())["stages"]
    assert "key" in stages["01_count"] and "key" not in stages["02_double"]
    by_hand = {"run": "runs/interactive", "seed": 0, "loud": False}
    assert stages["02_double"]["parameters"] == by_hand and stages["02_double"]["inputs"].keys() == {
        "questions.parquet",
        "steps",
    }


def test_upstream_returns_at_once_when_all_is_there(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain.make_missing_inputs("03_tell", "runs/t", root=finished, stages=toy.STAGES, package=finished / "toy")
    assert capsys.readouterr().out == ""


def test_a_notebook_opened_on_old_and_new_results_names_the_notebook_to_run_again(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.run(finished, "01_count.n=2", only="1")
    files = RunFiles(finished / "runs/t")
    options = {"root": finished, "stages": toy.STAGES, "package": finished / "toy"}
    chain.make_missing_inputs("02_double", "runs/t", **options)
    assert capsys.readouterr().err == ""  # what 02 reads is new, and belongs together
    chain.make_missing_inputs("03_tell", "runs/t", **options)
    assert capsys.readouterr().err == (
        "warning: runs/t: old and new results are mixed (questions.parquet and steps changed after 02_double): run "
        "02_double again\n"
    )
    record_stage(files, "03_tell", [files.report], {})
    assert manifest(finished)["stages"]["03_tell"]["inputs"] == {"values.parquet": content_hash(files.values)}
    toy.run(finished, "01_count.n=2")
    chain.make_missing_inputs("03_tell", "runs/t", **options)
    assert capsys.readouterr().err == ""


def test_a_run_keeps_the_date_of_its_first_start_in_every_kernel(tmp_path: Path) -> None:
    """A run that is resumed after midnight writes the same prompts."""
    write = "import os\nPath('dates').open('a').write(os.environ['MEDREFL_RUN_DATE'] + '\\n')"
    root = toy.checkout(tmp_path, {name: [*toy.BODIES[name], write] for name in ("01_count", "02_double")})
    before = datetime.date.today()
    toy.run(root, only="1")
    first = manifest(root)["date"]
    assert before.isoformat() <= first <= datetime.date.today().isoformat()
    stored = manifest(root) | {"date": "2024-02-29"}
    (root / "runs/t/manifest.json").write_text(json.dumps(stored))
    toy.run(root, "01_count.n=7")
    assert (root / "dates").read_text().split() == [first, "2024-02-29", "2024-02-29"]
    assert manifest(root)["date"] == "2024-02-29"
    assert toy.run(root, "01_count.n=7")[0] == []


def test_a_notebook_opened_by_hand_has_the_runs_date_too(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDREFL_RUN_DATE", "1999-01-01")  # of another run, opened in the same kernel
    path = finished / "runs/t/manifest.json"
    path.write_text(json.dumps(manifest(finished) | {"date": "2024-02-29"}))
    chain.make_missing_inputs("03_tell", "runs/t", root=finished, stages=toy.STAGES, package=finished / "toy")
    assert os.environ["MEDREFL_RUN_DATE"] == "2024-02-29"
    # A run of an earlier version has no date: it gets today's.
    old = {name: value for name, value in manifest(finished).items() if name != "date"}
    path.write_text(json.dumps(old))
    chain.make_missing_inputs("03_tell", "runs/t", root=finished, stages=toy.STAGES, package=finished / "toy")
    assert os.environ["MEDREFL_RUN_DATE"] == manifest(finished)["date"] != "2024-02-29"
    assert {name: value for name, value in manifest(finished).items() if name != "date"} == old


def test_what_upstream_makes_has_the_date_of_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDREFL_RUN_DATE", raising=False)
    write = "import os\nPath('dates').open('a').write(os.environ['MEDREFL_RUN_DATE'] + '\\n')"
    root = toy.checkout(tmp_path, {"01_count": [*toy.BODIES["01_count"], write]})
    chain.make_missing_inputs("02_double", "runs/new", root=root, stages=toy.STAGES, package=root / "toy")
    recorded = json.loads((root / "runs/new/manifest.json").read_text())["date"]
    assert (root / "dates").read_text().split() == [recorded] == [os.environ["MEDREFL_RUN_DATE"]]


def test_a_checkout_whose_path_has_braces_and_spaces(tmp_path: Path) -> None:
    """papermill fills in {name} in its paths, with the notebook's own parameters."""
    root = toy.checkout(tmp_path / "a{b}c d{seed}{" / "{}")
    executed, printed = toy.run(root)
    assert executed == ALL and "report: " in printed
    assert (root / "runs/t/values.parquet").read_text() == "0\n1\n2\n30\n1\n2\n3"
    assert (root / "runs/t/notebooks/01_count.ipynb").exists()
    assert toy.run(root)[0] == []


def test_upstream_never_starts_a_chain_inside_a_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = toy.checkout(tmp_path)
    monkeypatch.setenv("MEDREFL_CHAIN", "1")
    with pytest.raises(
        MedReflError, match="^03_tell reads runs/x/values.parquet, which is missing: 02_double makes it$"
    ):
        chain.make_missing_inputs("03_tell", "runs/x", root=root, stages=toy.STAGES, package=root / "toy")
    assert not (root / "runs").exists()


def test_an_error_in_a_notebook_run_without_the_chain_is_papermills_own(tmp_path: Path) -> None:
    # Guards the test above: the notebooks do fail when what they read cannot be made.
    root = toy.checkout(tmp_path, {"01_count": ["raise MedReflError('no exam')"]})
    script = (
        "import papermill; papermill.execute_notebook('notebooks/02_double.ipynb', 'out.ipynb', kernel_name='python3')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert PapermillExecutionError.__name__ in done.stderr and "no exam" in done.stderr


def test_ctrl_c_ends_the_kernel_and_can_be_taken_up_again(tmp_path: Path) -> None:
    body = ["import os, time\nPath('pid').write_text(str(os.getpid()))\ntime.sleep(100)"]
    root = toy.checkout(tmp_path, {"01_count": body})
    code = "from pathlib import Path; from tests import toy; toy.run(Path('.').resolve())"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's child would ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (root / "pid").exists() or not (root / "pid").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int((root / "pid").read_text()), 0)
    assert why(root)["01_count"] == "was interrupted"


class Terminal(io.StringIO):
    """A text file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_prints_a_bars_last_state_without_a_terminal() -> None:
    file = io.StringIO()
    progress = Progress(file)
    for text in ("\rx:  0%", "\rx: 50%", "\rx: 100%\n", "a warning\n", "\ry:  1%"):
        progress.write(text)
    progress.close()
    assert file.getvalue() == "    x: 100%\n    a warning\n    y:  1%\n"


def test_progress_rewrites_in_place_on_a_terminal_and_drops_control_codes() -> None:
    file = Terminal()
    progress = Progress(file)
    progress.write("\r\x1b[31mx: 50%\x1b[0m\x07")
    assert file.getvalue() == "\r\x1b[2K    x: 50%"
    progress.write("\rx: 100%\n")
    progress.close()
    assert file.getvalue().endswith("\r\x1b[2K    x: 100%\n\r\x1b[2K") or file.getvalue().endswith("    x: 100%\n")


def test_code_hashes_follow_imports_of_every_form(tmp_path: Path) -> None:
    sources = {
        "__init__.py": "",
        "a.py": "from . import b",
        "b.py": "def f():\n    from pkg.c import g",
        "c.py": "import pkg.d.e",
        "d/__init__.py": "",
        "d/e.py": "from ..f import h",
        "f.py": "import os, numpy",
        "z.py": "",
        "runs/chain.py": "import pkg.z",
        "room/__init__.py": "import lazy\n"
        "_ = lazy.attach(__name__, submodules=['k'], submod_attrs={'m': ['one', 'two'], 'n': ['n']})",
        "room/k.py": "",
        "room/m.py": "",
        "room/n.py": "",
    }
    for name, source in sources.items():
        (tmp_path / "pkg" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pkg" / name).write_text(source)
    toy.notebook(tmp_path / "n.ipynb", "x: int = 1", ["%matplotlib inline\nimport pkg.runs.chain\nfrom pkg import a"])
    found = provenance.code_hashes(tmp_path / "n.ipynb", tmp_path / "pkg")
    assert list(found) == ["a.py", "b.py", "c.py", "d/__init__.py", "d/e.py", "f.py"]
    for added, same in (("  # why", True), ('\n"""A text."""', True), ("\nN = 1", False)):
        (tmp_path / "pkg" / "f.py").write_text(sources["f.py"] + added)
        now = provenance.code_hashes(tmp_path / "n.ipynb", tmp_path / "pkg")
        assert (now == found) is same and now["a.py"] == found["a.py"]
    (tmp_path / "pkg" / "f.py").write_text(sources["f.py"])
    for source, modules in {
        "from pkg.room import one": {"room/m.py"},
        "from pkg import room\nroom.two(1)": {"room/m.py"},
        "from pkg import room as r\nr.n\nr.one": {"room/m.py", "room/n.py"},
        "from pkg.room import k": {"room/k.py"},
        "from pkg import room": set(),
    }.items():
        toy.notebook(tmp_path / "n.ipynb", "x: int = 1", [source])
        assert provenance.code_hashes(tmp_path / "n.ipynb", tmp_path / "pkg").keys() == modules, source


def test_the_real_chain_hands_on_every_artifact() -> None:
    made: set[str] = {"figures"}
    for stage in stages.STAGES:
        assert set(stage.reads) <= made, f"{stage.name} reads what nothing above it makes"
        assert stage.writes, f"{stage.name} writes nothing"
        made |= set(stage.writes)
