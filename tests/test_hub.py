"""What the hub says of a model or a dataset: a real HTTP server answers as the hub does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASK = """
import sys
from medrefl_utils.core import MedReflError, resolve_model
from medrefl_utils.exam.exam_files import check_dataset
for kind, name in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        print("ok", (resolve_model if kind == "model" else check_dataset)(name))
    except MedReflError as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """Everybody may read what a gated repository is; only the token "member" may download it."""

    def do_GET(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        name = "/".join(self.path.split("?")[0].split("/")[3:5])
        asks_access = self.path.endswith("/auth-check")
        if token == "expired":
            return self._reply(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if name == "nobody/none":
            return self._reply(401 if not token else 404, {"X-Error-Code": "RepoNotFound"})
        if asks_access and name.startswith("meta/") and token != "member":
            return self._reply(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        if asks_access and name == "mirror/old":
            return self._reply(404, {})
        return self._reply(
            200, {}, {"id": name, "gated": "manual" if name.startswith("meta/") else False, "siblings": []}
        )

    def _reply(self, status: int, headers: dict[str, str], body: object = None) -> None:
        data = json.dumps(body or {"error": "no"}).encode()
        self.send_response(status)
        for key, value in (headers | {"Content-Type": "application/json", "Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def ask(hub: str, folder: Path, *words: str, token: str = "") -> list[str]:
    hidden = ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(folder), "NO_PROXY": "*"}
    environment |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_gated_repository_names_the_licence_page_and_the_token(hub: str, tmp_path: Path) -> None:
    words = ("model", "meta/llama", "dataset", "meta/exam", "model", "open/qwen", "model", "nobody/none")
    gated, dataset, public, missing = ask(hub, tmp_path, *words)
    assert gated == (
        f"model meta/llama: no such folder, and gated on the hub: accept the licence at {hub}/meta/llama, then export"
        " HF_TOKEN=hf_..., which is not set"
    )
    assert f"meta/exam: no such file, and gated on the hub: accept the licence at {hub}/datasets/meta/exam," in dataset
    assert public == "ok open/qwen"
    assert missing.endswith(
        f"not available on the hub: {hub}/nobody/none does not exist, or is private and needs HF_TOKEN"
    )


def test_a_token_without_access_is_told_apart_from_one_with_it(hub: str, tmp_path: Path) -> None:
    (refused,) = ask(hub, tmp_path, "model", "meta/llama", token="other")
    assert "gated on the hub, and the token in HF_TOKEN may not download it: accept the licence at" in refused
    assert ask(hub, tmp_path, "model", "meta/llama", "dataset", "meta/exam", token="member") == [
        "ok meta/llama",
        "ok None",
    ]
    (expired,) = ask(hub, tmp_path, "model", "open/qwen", token="expired")
    assert "not available on the hub, which refuses the token in HF_TOKEN" in expired


def test_a_mirror_that_does_not_know_the_question_and_a_local_model_are_no_error(hub: str, tmp_path: Path) -> None:
    student = str(ROOT / "medrefl_utils/models/tiny_student")
    assert ask(hub, tmp_path, "model", "mirror/old", "model", student) == ["ok mirror/old", f"ok {student}"]
    nobody = "http://127.0.0.1:9"
    assert ask(nobody, tmp_path, "model", student) == [f"ok {student}"]
