"""What is on disk after a fault, and what the next run makes of it. Kills of whole stages are in test_faults."""

import json
import os
import subprocess
import sys

import pandas as pd
import psutil
import pytest

from medrefl_utils.core import STEPS, MedReflError, RunFiles, Sampling, store
from medrefl_utils.exam import clinic, prompts
from medrefl_utils.models import Budget, CallLog, open_generator
from medrefl_utils.models.generators.call_log import call_key
from medrefl_utils.trees import SearchSettings, roll_out
from tests.conftest import ROOT

EXAM = clinic.make_exam(6, seed=3)
SAMPLING = Sampling(1.0, 1.0, 60)


@pytest.fixture(scope="module")
def student(tiny_student):
    return open_generator(tiny_student)


def grow(student, folder) -> pd.DataFrame:
    settings = dict(growth=SearchSettings((2, 1)), sampling=SAMPLING, seed=0, shard_size=2)
    return roll_out(EXAM, student, folder / "steps", shards=folder / "shards", **settings)[0]


def flipped(path, others) -> None:
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 4, len(data) // 4 + 40):  # amid the pages: the footer, at the end, stays whole
        data[place] ^= 0xFF
    path.write_bytes(data)


DAMAGES = {
    "a page is damaged": flipped,
    "cut in half": lambda path, others: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path, others: path.write_bytes(b""),
    "all zeros": lambda path, others: path.write_bytes(bytes(path.stat().st_size)),
    "another shard's": lambda path, others: path.write_bytes(others[0].read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_set_aside_by_name_and_its_questions_are_done_again(damage, student, tmp_path, capsys):
    whole = grow(student, tmp_path)
    path, *others = sorted((tmp_path / "shards").glob("*.parquet"))
    times = {other: other.stat().st_mtime_ns for other in others}
    content = path.read_bytes()
    path.unlink()  # the folder of steps has a link to it, which is not to be damaged with it
    path.write_bytes(content)
    DAMAGES[damage](path, others)
    again = grow(student, tmp_path)
    pd.testing.assert_frame_equal(again, whole)
    told = capsys.readouterr().err
    assert f"rollout: set aside as {path.with_suffix('.damaged')}, its 2 questions are repeated: " in told
    assert path.with_suffix(".damaged").exists()
    assert {other: other.stat().st_mtime_ns for other in others} == times
    assert store.read_table(tmp_path / "steps", STEPS).equals(whole)


def chats(tiny_student, folder):
    generator = open_generator(tiny_student, max_rows=2, calls=folder)
    written = generator.chat([prompts.exam(question) for question in EXAM], SAMPLING, range(6))
    return written, generator.usage


def test_replies_of_a_model_in_this_process_are_written_once(tiny_student, tmp_path):
    first, paid = chats(tiny_student, tmp_path / "calls")
    log = tmp_path / "calls/main.jsonl"
    assert log.read_text().count("\n") == 6 and paid.reused == 0
    again, free = chats(tiny_student, tmp_path / "calls")
    assert again == first and (free.reused, free.prompt_tokens) == (6, 0)
    assert (free.calls, free.completion_tokens) == (paid.calls, paid.completion_tokens)
    assert 0.5 * paid.seconds < free.seconds <= paid.seconds
    # Killed amid the second reply's line: that one and the later ones are written again. Other rows are beside them.
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + lines[1][:200])
    resumed, part = chats(tiny_student, tmp_path / "calls")
    assert [one.token_ids for one in resumed] == [one.token_ids for one in first]
    assert [one.logprob for one in resumed] == pytest.approx([one.logprob for one in first], abs=1e-4)
    assert part.reused == 1 and 0 < part.prompt_tokens < paid.prompt_tokens


def test_a_budget_that_ends_a_run_keeps_what_was_written(tiny_student, tmp_path):
    """Rows in flight are waited for, so the whole budget is used; with a larger one the rest is written."""
    asked = [prompts.exam(question) for question in EXAM]
    small = open_generator(tiny_student, max_rows=2, calls=tmp_path, budget=Budget(max_calls=3))
    with pytest.raises(MedReflError, match="max_calls is 3, 3 is spent"):
        small.chat(asked, SAMPLING, range(6))
    assert (small.spent.calls, (tmp_path / "main.jsonl").read_text().count("\n")) == (3, 3)
    large = open_generator(tiny_student, max_rows=2, calls=tmp_path, budget=Budget(max_calls=9))
    written = large.chat(asked, SAMPLING, range(6))
    assert (large.usage.reused, large.spent.calls) == (3, 3)
    whole = open_generator(tiny_student).chat(asked, SAMPLING, range(6))
    assert [one.token_ids for one in written] == [one.token_ids for one in whole]


def test_a_reply_depends_on_what_was_asked_and_drawn(tiny_student, tmp_path):
    generator = open_generator(tiny_student, calls=tmp_path)
    ask = [prompts.exam(EXAM[0])]
    for messages, sampling, seed in ((ask, SAMPLING, 1), (ask, SAMPLING, 2), (ask, Sampling(0.5, 1.0, 60), 1)):
        generator.chat(messages, sampling, [seed])
    assert generator.usage.reused == 0 and (tmp_path / "main.jsonl").read_text().count("\n") == 3


def test_a_log_is_read_from_all_its_files_and_past_broken_lines(tmp_path):
    CallLog(tmp_path, "worker-0").append("a", {"says": "one\nline"})
    CallLog(tmp_path, "worker-1").append("b", {"says": "é"})
    with open(tmp_path / "worker-1.jsonl", "ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"no": "key"}\n{"key": "c", "says"')
    own = CallLog(tmp_path, "worker-1")
    own.append("d", {"says": "after"})
    for log in (own, CallLog(tmp_path)):
        assert [log.get(key) and log.get(key)["says"] for key in "abcd"] == ["one\nline", "é", None, "after"]
    assert call_key("a", 1) != call_key("a", 2)


_FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from pathlib import Path
from medrefl_utils.models.generators.call_log import CallLog
from medrefl_utils.core import store
from medrefl_utils.core import MedReflError
folder = Path(sys.argv[1])
log = CallLog(folder)
def until_full(write):
    for number in range(100):
        try:
            write(number)
        except MedReflError as error:
            return print(number, error)
until_full(lambda n: log.append(f"key {n}", {"says": "x" * 500}))
until_full(lambda n: store.write_text(folder / "text.md", "y" * 1000 * (n + 1)))
"""


def test_a_full_disk_is_one_line_and_what_is_there_stays(tmp_path):
    """A limit on the size of files stands for the disk: the system refuses the write in the same way."""
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    kept, log, text = done.stdout.split(maxsplit=1)[0], *done.stdout.splitlines()
    assert log == f"{kept} {tmp_path / 'main.jsonl'} cannot be written: the disk is full"
    assert text == f"4 {tmp_path / 'text.md'} cannot be written: File too large"
    assert (tmp_path / "text.md").read_text() == "y" * 4000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["main.jsonl", "text.md"]
    again = CallLog(tmp_path)
    assert [again.get(f"key {n}") is not None for n in range(8)] == [True] * 7 + [False] and int(kept) == 7
    again.append("more", {"says": "z"})
    assert json.loads((tmp_path / "main.jsonl").read_bytes().splitlines()[-1])["says"] == "z"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    with store.whole_folder(tmp_path / "adapter") as beside:
        (beside / "one").write_text("1")
    with pytest.raises(ZeroDivisionError), store.whole_folder(tmp_path / "adapter") as beside:
        (beside / "two").write_text("2")
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.rglob("*")] == ["adapter", "one"]
    with pytest.raises(MedReflError, match=r"adapter cannot be written: No such file or directory$"):
        with store.whole_folder(tmp_path / "adapter"):
            (tmp_path / "nowhere/x").write_text("")
    assert (tmp_path / "adapter/one").read_text() == "1"


def test_what_a_killed_write_left_beside_goes_with_the_next_one_and_what_another_process_writes_stays(tmp_path):
    at_work = tmp_path / f".text.md.{os.getppid()}.tmp"
    for beside in (tmp_path / ".text.md.999999999.tmp", at_work):
        beside.write_text("half")
    store.write_text(tmp_path / "text.md", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"text.md", at_work.name}


def test_a_kernel_of_a_killed_chain_is_ended_and_no_other(tmp_path):
    from medrefl_utils.runs.execution import CHAIN, end_orphans

    run, other = RunFiles(tmp_path / "mine").root, RunFiles(tmp_path / "other").root
    wait = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"]
    processes = [
        subprocess.Popen(wait, env=os.environ | {CHAIN: str(folder)}, stdout=subprocess.PIPE) for folder in (run, other)
    ]
    for process in processes:
        process.stdout.readline()
    end_orphans(run)
    assert [psutil.pid_exists(process.pid) for process in processes] == [False, True]
    processes[1].kill()
    processes[1].wait()
