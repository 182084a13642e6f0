"""Linking by a model: what it lists, what embeddings find, what it picks; and embeddings of a folder and a server."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from medrefl_utils.core import Continuation, MedReflError, Sampling
from medrefl_utils.exam import clinic
from medrefl_utils.knowledge import KnowledgeGraph, NameEmbeddings, link_by_model, read_graph, write_clinic_graph
from medrefl_utils.models import LocalGenerator, open_embedder
from medrefl_utils.models.generators.interface import Generator, Usage
from tests.conftest import SHARED

STUDENT = Path(__file__).parents[1] / "medrefl_utils/models/tiny_student"
SMOLLM2 = Path(os.environ.get("MEDREFL_SMOLLM2", Path(__file__).parents[1] / "models/smollm2"))
GREEDY = Sampling(temperature=0.0)
NODES = [("Fever", "effect/phenotype"), ("Yellow fever", "disease"), ("Myocardial infarction", "disease"),
         ("Cerebral infarction", "disease"), ("Aspirin", "drug")]  # fmt: skip
TEXT = "A man with fever had a heart attack. He denies chest pain. He took aspirin, then Aspirin again."


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeGraph:
    rows = [f"r,{name},{kind},{name},Fever,effect/phenotype,Fever" for name, kind in NODES[1:]]
    file = tmp_path_factory.mktemp("graph") / "kg.csv"
    file.write_text("\n".join(["display_relation,x_id,x_type,x_name,y_id,y_type,y_name", *rows, ""]))
    return read_graph(file)


class Script(Generator):
    """Replies as a table says: {a part of the prompt: replies, one after the other}."""

    key = "script"

    def __init__(self, replies: dict[str, list[str]]) -> None:
        self.replies, self.usage, self.prompts = replies, Usage(), []

    def chat(self, messages: Sequence, sampling: Sampling, seeds: Sequence[int], progress=None) -> list[Continuation]:
        found = []
        for [message] in messages:
            self.prompts.append(message["content"])
            [part] = [part for part in self.replies if part in message["content"]]
            found.append(Continuation(self.replies[part].pop(0), (), None, "end", 1))
        return found


class Vectors:
    """Gives known names known vectors, so that each cosine is known."""

    key = "vectors"
    angles = {"Fever": 0, "fever": 0, "Yellow fever": 30, "Myocardial infarction": 100, "heart attack": 70,
              "Cerebral infarction": 115, "Aspirin": 200, "aspirin": 200, "chest pain": 300}  # fmt: skip

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.embedded += texts
        radians = np.radians([self.angles[text] for text in texts])
        return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def link(graph: KnowledgeGraph, generator: Generator, texts: Sequence[str] = (TEXT,), **options):
    names = options.pop("names", None) or NameEmbeddings(graph, Vectors())
    return link_by_model(texts, graph, generator, names, sampling=GREEDY, seed=0, **options)


def shown(graph: KnowledgeGraph, mentions: list) -> list[tuple[str, str, str, bool]]:
    assert all(TEXT[m.start : m.end] == m.text for m in mentions)
    return [(m.text, graph.names[m.node], m.rule, m.negated) for m in mentions]


LIST = """1. fever | effect/phenotype
- **heart attack** | disease
* aspirin | medicine
chest pain | disease
vomiting | disease"""


def test_same_name_nearest_and_the_models_choice(graph: KnowledgeGraph) -> None:
    generator = Script({"Which medical entities": [LIST], 'same as "heart attack"': ["Same: 1"]})
    [mentions], dropped = link(graph, generator)
    # cos 30° = 0.87: Myocardial infarction is above 0.85, so it is taken without asking.
    assert shown(graph, mentions) == [
        ("fever", "Fever", "same name", False),
        ("heart attack", "Myocardial infarction", "nearest", False),
        ("aspirin", "Aspirin", "same name", False),
        ("Aspirin", "Aspirin", "same name", False),
    ]
    assert mentions[1].score == pytest.approx(np.cos(np.radians(30)), abs=1e-4)
    assert dropped == {
        "entity_not_in_text": 1, "entity_unknown_type": 1, "entity_no_candidate": 1, "entity_none_chosen": 0
    }  # fmt: skip
    assert len(generator.prompts) == 1
    generator = Script({"Which medical": [LIST], 'same as "heart attack"': ["Same: 2"]})
    [mentions], _ = link(graph, generator, sure_cosine=0.9)
    # The candidates in order: 30° (0.87), 40° (0.77, yellow fever) and 45° (0.71).
    assert shown(graph, mentions)[1][:3] == ("heart attack", "Yellow fever", "model")


def test_the_model_picks_by_number_among_the_candidates_of_the_type_or_none(graph: KnowledgeGraph) -> None:
    for reply, name in [("Same: 3", "Cerebral infarction"), ("[1]", "Myocardial infarction"), ("Same: none", None)]:
        generator = Script({"Which medical": ["heart attack | disease"], 'same as "heart attack"': [reply]})
        [mentions], dropped = link(graph, generator, sure_cosine=0.99)
        assert [graph.names[m.node] for m in mentions] == ([name] if name else [])
        assert dropped["entity_none_chosen"] == (name is None)
        asked = generator.prompts[1]
        assert "[1] Myocardial infarction\n[2] Yellow fever\n[3] Cerebral infarction\n\n" in asked and TEXT in asked
    generator = Script({"Which medical": ["heart attack | disease"], 'same as "heart attack"': ["Same: 2"]})
    link(graph, generator, sure_cosine=0.99, nearest=2, min_cosine=0.1)
    assert "[2] Yellow fever\n\n" in generator.prompts[1]
    generator = Script({"Which medical": ["heart attack | disease"], 'same as "heart attack"': ["Same: 1"]})
    link(graph, generator, sure_cosine=0.99, min_cosine=0.8)
    assert "[1] Myocardial infarction\n\n" in generator.prompts[1]


def test_unreadable_replies_are_asked_for_again_and_counted(graph: KnowledgeGraph) -> None:
    generator = Script({"had a heart": ["I see.", "fever | effect/phenotype"], "second": ["?", "!", "None at all"]})
    mentions, dropped = link(graph, generator, [TEXT, "A second text."])
    assert [len(found) for found in mentions] == [1, 0] and len(generator.prompts) == 5
    assert dropped["entities_unreadable"] == 1 and "A second text." in dropped.examples["entities_unreadable"]
    generator = Script({"Which medical": ["heart attack | disease"], "same as": ["Same: 9", "Same: 0", "maybe"]})
    [mentions], dropped = link(graph, generator, sure_cosine=0.99)
    assert mentions == [] and dropped.faults == {"entity_unreadable": 1}
    [mentions], dropped = link(graph, Script({"Which medical": ["none"]}))
    assert mentions == [] and not dropped.faults
    with pytest.raises(MedReflError, match="sure_cosine 1.5"):
        link(graph, Script({}), sure_cosine=1.5)


def test_a_denied_finding_is_marked_and_thinking_is_not_read(graph: KnowledgeGraph) -> None:
    text = "He denies fever."
    generator = Script({"Which medical": ["<think>chills | disease</think>fever | effect/phenotype"]})
    [[mention]], dropped = link_by_model([text], graph, generator, NameEmbeddings(graph), sampling=GREEDY, seed=0)
    assert mention.negated and mention.text == "fever" and dropped["entity_not_in_text"] == 0


def test_without_an_embedder_ngrams_compare_within_the_type(graph: KnowledgeGraph) -> None:
    names = NameEmbeddings(graph)
    [row] = names.nearest(["cerebral infarctions"], ["disease"], 2)
    assert graph.names[row[0][0]] == "Cerebral infarction" and row[0][1] > 0.9
    assert names.nearest(["cerebral infarctions"], ["drug"], 2) == [[]]
    [row] = names.nearest(["fever"], [None], 5)
    assert [graph.names[node] for node, _ in row] == ["Fever", "Yellow fever"]


def test_the_names_vectors_are_kept(graph: KnowledgeGraph, tmp_path: Path) -> None:
    first, again, other = Vectors(), Vectors(), Vectors()
    other.key = "another model"
    cache = tmp_path / "names.npz"
    one = NameEmbeddings(graph, first, cache=cache).nearest(["fever"], [None], 3)
    assert NameEmbeddings(graph, again, cache=cache).nearest(["fever"], [None], 3) == one
    assert sorted(first.embedded[:-1]) == sorted(graph.names) and again.embedded == ["fever"]
    NameEmbeddings(graph, other, cache=cache)
    assert len(other.embedded) == len(graph.names)


def test_a_folder_embeds_alike_alone_and_in_a_batch() -> None:
    embedder = open_embedder(str(STUDENT))
    texts = ["amber sweat", "belkitis arises from belvin loss", "amber sweat", ""]
    rows = embedder.embed(texts)
    assert rows.dtype == np.float32 and np.allclose(np.linalg.norm(rows[:3], axis=1), 1, atol=1e-5)
    assert np.allclose(rows[0], rows[2]) and rows[0] @ rows[1] < 0.999
    for text, row in zip(texts[:3], rows, strict=False):
        assert np.allclose(embedder.embed([text])[0], row, atol=1e-4)
    assert embedder.embed([]).shape == (0, rows.shape[1]) and "mean" in embedder.key


def test_pooling_is_what_the_folder_says(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    for file in STUDENT.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "1_Pooling").mkdir()
    rows, texts = {}, ["amber sweat", "belkitis arises from belvin loss"]
    for mode in ("cls_token", "lasttoken", "mean_tokens"):
        (folder / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
        embedder = open_embedder(str(folder))
        rows[mode] = embedder.embed(texts)
    assert np.allclose(rows["mean_tokens"], open_embedder(str(STUDENT)).embed(texts))
    assert not np.allclose(rows["cls_token"], rows["lasttoken"], atol=1e-3)
    with pytest.raises(MedReflError, match="neither a model nor an endpoint"):
        open_embedder()
    with pytest.raises(MedReflError, match="no such folder"):
        open_embedder("./nowhere")


class _Server(BaseHTTPRequestHandler):
    broken = False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vectors = [
            {"object": "embedding", "index": i, "embedding": [3.0 * len(text), 4.0 * len(text)]}
            for i, text in enumerate(body["input"])
        ]
        reply = {"object": "list", "model": body["model"], "data": vectors[::-1][: -1 if self.server.broken else None]}
        reply["usage"] = {"prompt_tokens": 1, "total_tokens": 1}
        status, data = 200, json.dumps(reply).encode()
        if self.path != "/v1/embeddings":
            status, data = 404, b'{"error": {"message": "no model"}}'
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def test_a_server_embeds() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    server.broken = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        embedder = open_embedder(endpoint=f"{url}/v1", endpoint_model="m")
        assert np.allclose(embedder.embed(["a", "bb"] * 200), [[0.6, 0.8]] * 400)
        server.broken = True
        with pytest.raises(MedReflError, match="1 vectors for 2 texts"):
            embedder.embed(["a", "b"])
        with pytest.raises(MedReflError, match="HTTP 404 for embeddings"):
            open_embedder(endpoint=url, endpoint_model="m").embed(["a"])
        with pytest.raises(MedReflError, match="name of its embedding model is missing"):
            open_embedder(endpoint=url)
    finally:
        server.shutdown()
        server.server_close()


def test_the_clinic_with_a_model_that_lists_its_findings(tmp_path: Path) -> None:
    """A model that lists the truth is linked without loss, with n-grams as with the student's own embeddings."""
    graph = read_graph(write_clinic_graph(tmp_path / "clinic.csv", clinic.world()))
    cases = clinic.make_cases(5, seed=2)
    for embedder in (None, open_embedder(str(STUDENT))):
        lists = {case.question.stem: ["\n".join(f"{f} | effect/phenotype" for f in case.findings)] for case in cases}
        names = NameEmbeddings(graph, embedder)
        texts = [case.question.stem for case in cases]
        mentions, dropped = link_by_model(texts, graph, Script(lists), names, sampling=GREEDY, seed=0)
        for case, found in zip(cases, mentions, strict=True):
            assert [graph.names[m.node] for m in found] == list(case.findings)
        assert not any(dropped.values())


@pytest.mark.skipif(
    not (SMOLLM2.is_dir() and (SHARED / "knowledge").is_dir()), reason="no SmolLM2, or MEDREFL_SHARED has no graph"
)
def test_a_real_model_lists_entities_of_a_real_vignette() -> None:
    graph = read_graph(SHARED / "knowledge/hetionet_sample.csv")
    with open(SHARED / "benchmarks/medbullets_op4.jsonl", encoding="utf-8") as file:
        text = json.loads(file.readline())["question"][:250]
    sampling = Sampling(temperature=0.7, max_tokens=60)
    [found], dropped = link_by_model(
        [text], graph, LocalGenerator(str(SMOLLM2)), NameEmbeddings(graph), sampling=sampling, seed=0
    )
    assert all(text[m.start : m.end] == m.text and m.rule in ("same name", "nearest", "model") for m in found)
    assert found or dropped
