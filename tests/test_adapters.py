"""An adapter's way out: its card, the merged 16-bit model that is checked against it, and the hub."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from medrefl_utils.core import TRAINING, MedReflError
from medrefl_utils.models import load_model
from medrefl_utils.training import Agreement, find_adapter, merge_adapter, push_to_hub, write_model_card
from medrefl_utils.training.taught import TAUGHT_QUESTIONS
from tests.models import make_pairs, save_adapter

PAIRS = pd.DataFrame(make_pairs(3) + make_pairs(2, "reflection_mid"))
LOG = pd.DataFrame({name: [0.0] * 10 for name in TRAINING.names}).assign(
    step=range(1, 11), loss=[0.7] * 8 + [0.5, 0.3], margin=1.25, accuracy=0.9,
    held_out_loss=[None] * 9 + [0.6], held_out_margin=[None] * 9 + [0.75], held_out_accuracy=[None] * 9 + [0.8],
)  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tiny_student, tmp_path_factory):
    """An adapter that changes much: what a lost or doubled one would do shows."""
    folder = tmp_path_factory.mktemp("run") / "adapter"
    save_adapter(folder, tiny_student)
    AutoTokenizer.from_pretrained(tiny_student).save_pretrained(folder)
    settings = {"beta": 0.1, "seed": 3}
    licences = {tiny_student: "Apache-2.0"}
    write_model_card(
        folder, PAIRS, LOG, base=tiny_student, settings=settings, licences=licences, sources=["clinic", "x"]
    )
    return folder


def test_the_card_tells_data_settings_figures_and_licences(adapter, tiny_student):
    card = (adapter / "README.md").read_text()
    for told in (
        "5 pairs from 3 questions: reasoning 3, reflection_mid 2.",
        "| beta | 0.1 |\n| seed | 3 |",
        "Mean of the last fifth of 10 optimizer steps: loss 0.4000",
        "reward margin\n1.250, reward accuracy 90.0%.",
        "Held-out pairs: loss 0.6000, reward margin 0.750, reward accuracy 80.0%.",
        f"| base: {tiny_student} | Apache-2.0 |",
        "| questions: clinic | Apache-2.0 |\n| questions: x | not stated |",
        "rank 8, on down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        "--max-lora-rank 8",
    ):
        assert told in card, told
    assert "base_model:" not in card  # a folder of this machine is no address on the hub


def test_the_merged_model_is_16_bit_and_says_what_base_and_adapter_say(adapter, tiny_student, tmp_path):
    agreement = merge_adapter(adapter, tmp_path / "merged", examples=PAIRS.assign(completion=PAIRS.chosen))
    assert agreement.same >= 0.98 and agreement.difference < 0.1 and agreement.tokens > 100
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    merged = load_model(str(tmp_path / "merged"), dtype=torch.float32)
    tuned = load_model(tiny_student, adapter=adapter, dtype=torch.float32)
    base = load_model(tiny_student, dtype=torch.float32)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    ids = torch.arange(300, 340)[None]
    with torch.inference_mode():
        one, two, none = (m(ids).logits for m in (merged, tuned, base))
    assert (one - two).abs().mean() < 0.1 * (none - two).abs().mean()
    card = (tmp_path / "merged" / "README.md").read_text()
    assert agreement.line() in card and "library_name: transformers" in card
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_a_merged_model_that_differs_is_refused(adapter, tmp_path, monkeypatch):
    """As if the adapter had been left out."""
    monkeypatch.setattr("peft.PeftModel.merge_and_unload", lambda self: self.unload(), raising=False)
    told = r"merge: merged and adapter agree on .*; expected at least 98%: nothing is written$"
    with pytest.raises(MedReflError, match=told):
        merge_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merge_by_command(adapter, tmp_path, root):
    command = [sys.executable, "-m", "medrefl_utils", "merge"]

    def run(*words):
        return subprocess.run([*command, *map(str, words)], cwd=root, capture_output=True, text=True, timeout=120)

    done = run(adapter.parent, tmp_path / "out")  # the run's folder
    assert done.returncode == 0, done.stderr
    assert "out: merged and adapter agree on " in done.stdout and "nats" in done.stdout
    again = run(adapter, tmp_path / "out")
    assert again.returncode == 2 and "is not empty; name a new folder" in again.stderr
    none = run(tmp_path, tmp_path / "other")
    assert none.returncode == 2 and "no adapter_config.json there" in none.stderr


def test_an_adapter_that_names_no_base_asks_for_it(adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(MedReflError, match="names no base model; give it with --base"):
        find_adapter(folder)


def test_agreement_is_told_in_one_line():
    line = Agreement(tokens=200, same=0.995, difference=0.01234).line()
    assert line == "merged and adapter agree on 99.50% of 200 tokens; mean log-probability difference 0.0123 nats"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's own protocol as a push of small files needs."""

    seen: dict = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        host = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            self.seen["create"] = json.loads(body)
            answer = {"url": f"{host}/me/medrefl", "id": "me/medrefl", "name": "me/medrefl"}
        elif "/preupload/" in self.path:
            files = [f["path"] for f in json.loads(body)["files"]]
            answer = {"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            self.seen["files"] = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            answer = {"commitUrl": f"{host}/me/medrefl/commit/1", "commitOid": "1", "success": True}
        else:
            answer = {}
        self.reply(answer)

    def do_GET(self):
        self.reply({"id": "me/medrefl", "sha": "0", "siblings": [], "private": True})

    def reply(self, answer):
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        pass


def push_by_command(root, *words):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Hub.seen = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    try:
        return subprocess.run(
            [sys.executable, "-m", "medrefl_utils", "push", *map(str, words)],
            cwd=root, capture_output=True, text=True, timeout=120, env=environment,
        )  # fmt: skip
    finally:
        server.shutdown()


def test_push_is_private_unless_told_otherwise(adapter, root):
    questions = adapter / TAUGHT_QUESTIONS
    questions.write_bytes(b"a table")
    done = push_by_command(root, adapter.parent, "me/medrefl")
    assert done.returncode == 0, done.stdout + done.stderr
    assert Hub.seen["create"]["name"] == "medrefl" and Hub.seen["create"]["visibility"] == "private"
    assert Hub.seen["files"]["README.md"] == (adapter / "README.md").read_bytes()
    assert {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"} <= set(Hub.seen["files"])
    assert questions.is_file() and questions.name not in Hub.seen["files"], "exam questions stay on the machine"
    assert done.stdout.strip().endswith("me/medrefl")
    assert push_by_command(root, adapter, "me/medrefl", "--public").returncode == 0
    assert Hub.seen["create"]["visibility"] == "public"
    questions.unlink()


def test_what_cannot_be_pushed_is_told_before_the_hub_is_asked(adapter, tmp_path):
    with pytest.raises(MedReflError, match="holds neither an adapter nor a model"):
        push_to_hub(tmp_path, "me/medrefl")
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    with pytest.raises(MedReflError, match="'medrefl' is not a hub id of the form owner/name"):
        push_to_hub(folder, "medrefl")
    (folder / "README.md").unlink()
    with pytest.raises(MedReflError, match=r"has no card \(README.md\)"):
        push_to_hub(folder, "me/medrefl")


def test_the_hub_is_only_reached_by_push(root):
    """Nothing else uploads: a run with licensed questions stays on the machine."""
    uploads = [
        path.relative_to(root / "medrefl_utils").as_posix()
        for path in (root / "medrefl_utils").rglob("*.py")
        if "upload_folder(" in path.read_text() or ".push_to_hub(" in path.read_text()
    ]
    assert uploads == ["training/adapters.py"]
