"""The report: what it shows, that it needs nothing from outside, and that text stays text."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_hex

from medrefl_utils.core import (
    CHAINS,
    PAIRS,
    QUESTIONS,
    RESPONSES,
    SCORES,
    SELF_CORRECTION,
    STEPS,
    VALUES,
    MedReflError,
    Question,
    RunFiles,
    read_table,
    write_manifest,
    write_table,
)
from medrefl_utils.exam import questions_table
from medrefl_utils.pairs import reasoning_pairs
from medrefl_utils.trees import paths, value_table
from medrefl_utils.views import plots, write_report

NAN = float("nan")
SCRIPT = "<script>alert('gotcha')</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
HOSTILE = f"{SCRIPT} {IMAGE} **bold** $x^2$ {{{{ 7 * 7 }}}} </details></div> \x07end"

QUESTION = Question("q1", f"A rash after {SCRIPT}", {"A": "zelorin", "B": IMAGE, "C": "oxpril"}, "A", "clinic", "train")
OTHER = Question("q2", "A fever.", {"A": "marvutide", "B": "zelorin"}, "B", "clinic", "test")


class Page(HTMLParser):
    """A page's elements, in order, and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.balanced = True
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.text += " " if tag == "br" else ""
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.balanced &= bool(self.open) and self.open.pop() == tag
        self.text += " " if tag in ("th", "td") else ""

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str, css: str = "") -> list[dict[str, str | None]]:
        return [a for name, a in self.elements if name == tag and css in (a.get("class") or "").split(" ")]


def step(
    node: int, parent: int | None, depth: int, text: str, answer: str | None, outcome: float, **rest: object
) -> dict:
    known = outcome == outcome
    kind = "root" if parent is None else "leaf" if known else "step"
    stop = rest.get("stop", "answer" if known else None)
    row = {"question_id": "q1", "node_id": node, "parent_id": parent, "depth": depth, "kind": kind, "text": text}
    return row | {
        **{"token_ids": None, "answer": answer, "outcome": outcome, "stop": stop, "weight": rest.get("weight", 1)},
        **{"n_tokens": 5, "logprob": -1.0},
    }


STEPS_TABLE = pd.DataFrame(
    [
        step(0, None, 0, "", None, NAN),
        step(1, 0, 1, f"Step 1: {HOSTILE}\n", None, NAN),
        step(2, 0, 1, "Step 1: nothing.\n", None, NAN),
        step(3, 1, 2, "Answer: A\n", "A", 1.0, weight=2),
        step(4, 1, 2, "Answer: B\n", "B", -1.0),
        step(5, 2, 2, "Who knows", None, -1.0, stop="tokens"),
    ]
)


def response(question: Question, model: str, answer: str | None, text: str) -> dict:
    return {
        **{"question_id": question.question_id, "source": "clinic", "model": model, "protocol": "sampled", "run": 0},
        **{"response": text, "answer": answer, "rule": "stated", "gold": question.gold, "n_tokens": 9, "stop": "end"},
        **{"correct": answer == question.gold, "temperature": 1.0, "top_p": 1.0},
        **{"stated_letter": answer, "conflict": False, "stem_id": question.question_id, "content": "c"},
        **{"options": list(question.options.items()), "stem": question.stem, "seconds": 0.5, "judged": None},
    }


def score(model: str, accuracy: float, gain: float) -> dict:
    known = gain == gain
    return {
        **{"source": "clinic", "protocol": "sampled", "model": model, "n": 1000, "runs": 3, "accuracy": accuracy},
        **{"accuracy_low": accuracy - 0.03, "accuracy_high": accuracy + 0.03, "accuracy_published": accuracy + 0.01},
        **{"unreadable": 0.012, "mean_tokens": 61.4, "gain": gain, "gain_low": gain - 0.02, "gain_high": gain + 0.02},
        **{"clusters": 1000, "conflict": 0.001, "mean_tokens_right": 60.0, "mean_tokens_wrong": 63.0, "tokens": 184200},
        **{"accuracy_judged": NAN, "seconds": 99.0, "detectable": 0.03, "holm_p": 0.00004 if known else NAN},
        **{"mcnemar_runs": [0.00002] if known else None},
        **{"fixed": 300 if known else None, "broken": 87 if known else None, "mcnemar_p": 0.00002 if known else NAN},
    }


MANIFEST = {
    **{"run": "demo", "profile": "params/smoke.yaml", "overrides": ["shared.seed=7"]},
    "seeds": {"01_tree_rollout": {"seed": 7}, "04_dpo_lora_4bit": {"seed": 7}},
    "versions": {"medrefl": "0.1.0", "torch": "2.13.0", "trl": "1.16.0"},
    "machine": {"python": "3.11.7", "platform": "Linux", "cpu": "A <cpu>", "cores": 2, "memory_gib": 8.0},
    "git": {"revision": "0123456789abcdef", "dirty": True},
    "stages": {
        "01_tree_rollout": {
            **{"outputs": {"questions.parquet": "ab" * 32}, "figures": {"leaves": 4321}, "tokens": 123456},
            **{
                "seconds": 75.2,
                "parameters": {"model": "medrefl_utils/models/tiny_student"},
                "ingredients": {"secret": {"of": 1}},
            },
        },
        "03_pair_construction": {"outputs": {}, "figures": {"pairs": 1, "dropped": {"all_wrong": 17}}, "tokens": 0},
    },
}


def grown(folder: Path, questions: list[Question], steps: pd.DataFrame) -> RunFiles:
    """A run that has gone as far as stage 02."""
    run = RunFiles(folder)
    write_table(run.questions, questions_table(questions), QUESTIONS)
    write_table(run.steps / "part-00000.parquet", steps, STEPS)
    write_table(run.values, value_table(steps), VALUES)
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    run = grown(tmp_path / "demo", [QUESTION, OTHER], STEPS_TABLE)
    asked = [{"role": "user", "content": QUESTION.stem}]
    pairs, _ = reasoning_pairs(
        [QUESTION],
        STEPS_TABLE,
        paths(STEPS_TABLE),
        prompt=lambda _: asked,
        top_k=1,
        min_margin=0.0,
        max_per_question=1,
    )
    assert len(pairs) == 1
    write_table(run.pairs, pairs, PAIRS)
    responses = [
        response(OTHER, "base", "A", f"Answer: A {SCRIPT}"),
        response(OTHER, "medrefl", "B", f"I see {IMAGE}. Answer: B"),
        response(QUESTION, "base", "A", "Answer: A"),
        response(QUESTION, "medrefl", "A", "Answer: A"),
    ]
    write_table(run.responses / "clinic.parquet", pd.DataFrame(responses), RESPONSES)
    write_table(run.scores, pd.DataFrame([score("base", 0.6, NAN), score("medrefl", 0.671, 0.071)]), SCORES)
    run.figures.mkdir()
    plots.outcomes(STEPS_TABLE).savefig(run.figures / "outcomes.png")
    write_manifest(run, MANIFEST)
    return run


def page_of(run: RunFiles, note: str = "") -> Page:
    return Page(write_report(run, note).read_text(encoding="utf-8"))


def test_the_report_is_one_page_that_asks_for_nothing(run: RunFiles) -> None:
    path = write_report(run)
    assert path == run.report
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.balanced and not page.open
    assert "http:" not in html and "https:" not in html and "//" not in html.replace("</", "").split("<body>")[0]
    references = [a[name] for _, a in page.elements for name in ("src", "href", "srcset", "data") if name in a]
    places = {f"#{a['id']}" for a in page.all("section")}  # the contents list, of which each entry leads somewhere
    assert places <= set(references)
    assert all(str(r).startswith("data:image/png;base64,") or r in places for r in references)
    assert not [tag for tag, _ in page.elements if tag in ("script", "link", "iframe", "object", "base", "form", "svg")]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")


def test_hostile_text_is_shown_as_text(run: RunFiles) -> None:
    manifest = MANIFEST | {
        "profile": HOSTILE,
        "stages": {SCRIPT: {"figures": {IMAGE: SCRIPT}, "outputs": {IMAGE: "0"}}},
    }
    write_manifest(run, manifest)
    (run.figures / "outcomes.png").rename(run.figures / '" onerror="alert(1).png')
    page = page_of(run, note=HOSTILE)
    assert page.balanced
    assert not page.all("script")
    assert len(page.all("img")) == 1
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert page.text.count(SCRIPT) >= 6  # note, profile, tree, question, pair, response, manifest
    assert page.text.count(IMAGE) >= 4
    assert "{{ 7 * 7 }}" in page.text and "49 " not in page.text
    assert "\x07" not in page.text and "\ufffdend" in page.text


def test_knowledge_chains_have_a_section_where_a_run_has_them(run: RunFiles) -> None:
    assert not any(a["id"] == "chains" for a in page_of(run).all("section"))
    row = {name: None for name in CHAINS.names} | {
        **{"question_id": "q1", "gold": "A", "entities": [], "paths": ["rash <-[presents]- korvosis"], "faults": []},
        **{"pairs": 2, "connected": 1, "n_paths": 3, "replies": [], "named_early": False, "kept": True},
        **{"chain": f"A rash suggests {HOSTILE}.\nIt is treated with zelorin.", "conclusion": "Answer: A"},
        **{"n_steps": 2, "support": ["supported", "unknown"], "supported": 1, "contradicted": 0, "unknown": 1},
        **{"pass_with": 0.75, "pass_without": 0.5, "pass_other": 0.25},
        "prompt": [{"role": "user", "content": IMAGE}],
        "completion": [{"role": "assistant", "content": "Answer: A"}],
    }
    write_table(run.chains, pd.DataFrame([row]), CHAINS)
    page = page_of(run)
    assert page.balanced and any(a["id"] == "chains" for a in page.all("section")) and not page.all("script")
    told = " ".join(page.text.split())
    for text in ("chains kept 1 of 1", "calls supported 50.0%", "with its chain 75.0%", "without a chain 50.0%"):
        assert text in told
    assert f"Step 1: A rash suggests {SCRIPT}" in told and "Step 2: It is treated with zelorin. unknown" in told


def test_what_was_run_and_what_came_of_it(run: RunFiles) -> None:
    text = " ".join(page_of(run).text.split())
    for expected in (
        "Med-REFL run demo",
        "profile params/smoke.yaml",
        "overrides (--set) shared.seed=7",
        "model medrefl_utils/models/tiny_student",
        "questions 2 from clinic",
        "trees 1 with 5 steps",
        "evaluated on clinic: 1,000 questions",
        "seeds 7",
        "python 3.11.7, platform Linux, cpu A <cpu>, cores 2",
        "0123456789ab, with uncommitted changes",
        "60.0 [57.0, 63.0]",
        "67.1 [64.1, 70.1]",
        "+7.1 [+5.1, +9.1]",
        "2.0e-05",
        "1,000 × 3",
        "1.2%",
        "01_tree_rollout 75 s 123,456",
        "leaves 4,321",
        "dropped: all wrong 17",
        "torch 2.13.0",
        "questions.parquet abababababababab",
    ):
        assert expected in text, expected
    assert "secret" not in text  # what the chain compares is of no use to a reader


def test_the_published_figures_stand_there_and_what_was_not_run(run: RunFiles) -> None:
    text = " ".join(page_of(run).text.split())
    assert "MedQA-USMLE, 5 options Huatuo-o1 69.59 to 73.72 +4.13 not run" in text
    assert text.count("not run") == 15 + 11 and "none of these combinations of benchmark and model" in text
    stages = {"05_benchmark_evaluation": {"parameters": {"model": "FreedomIntelligence/HuatuoGPT-o1-8B"}}}
    write_manifest(run, MANIFEST | {"stages": stages})
    rows = pd.DataFrame([score("base", 0.6, NAN), score("medrefl", 0.671, 0.071)]).assign(source="medqa_5op")
    write_table(run.scores, rows, SCORES)
    text = " ".join(page_of(run).text.split())
    assert "Huatuo-o1 69.59 to 73.72 +4.13 61.0 to 68.1 (+7.1 [+5.1, +9.1]), sampled" in text
    assert "none of these combinations" not in text
    assert "Published results that were not run here: 13" in text and text.count("not run") == 14 + 11  # folded


def test_a_benchmark_that_the_model_was_trained_on_is_marked(run: RunFiles) -> None:
    seen, unseen = (replace(OTHER, question_id=f"Text-{n}") for n in (7, 1001))
    rows = [response(q, "base", "B", "Answer: B") | {"source": "medxpertqa_reasoning"} for q in (seen, unseen)]
    write_table(run.responses / "clinic.parquet", pd.DataFrame(rows), RESPONSES)
    scores = pd.DataFrame([score("base", 0.6, NAN) | {"source": "medxpertqa_reasoning"}])
    write_table(run.scores, scores, SCORES)
    note = "MedReason-8B was trained on 1 of these 2 questions: MedXpertQA Text-0 to Text-1000"
    for model, is_marked in (("UCSC-VLAA/MedReason-8B", True), ("Qwen/Qwen2.5-7B-Instruct", False)):
        write_manifest(run, {"stages": {"05_benchmark_evaluation": {"parameters": {"model": model}}}})
        text = page_of(run).text
        assert (note in text) == ("medxpertqa_reasoning, sampled †" in text) == is_marked


def test_a_question_in_another_script_has_its_own_direction(run: RunFiles) -> None:
    arabic = replace(QUESTION, stem="ما هو العلاج الأنسب؟", options={"A": "الأسبرين", "B": "الراحة", "C": "الجراحة"})
    write_table(run.questions, questions_table([arabic, OTHER]), QUESTIONS)
    page = page_of(run)
    assert all(element.get("dir") == "auto" for element in page.all("div", "text"))
    assert "A. الأسبرين ✓" in page.text and len(page.all("bdi")) >= 3


def test_leaves_are_counted_by_how_they_ended(run: RunFiles) -> None:
    text = " ".join(page_of(run).text.split())
    assert "correct answer 2 wrong answer 1 truncated: maximum tokens 1" in text


def test_the_tree_is_nested_details_coloured_by_value(run: RunFiles) -> None:
    page = page_of(run)
    assert len(page.all("details")) == 2 + 3 + 1  # published results of both; root, two inner steps; the manifest
    opened = [("open" in a) for a in page.all("details")]
    assert opened == [False, False, True, True, False, False]  # the pair's paths stand open
    badges = [(str(a["style"]).split(";")[0], a["title"]) for a in page.all("code", "v")]
    assert badges[0] == ("background-color:" + to_hex(plots.VALUE_COLOURS(0.5)), "step 0: 2 correct and 2 wrong leaves")
    assert badges[2] == ("background-color:" + plots.RIGHT, "step 3: 2 correct and 0 wrong leaves")
    assert badges[5] == ("background-color:" + plots.WRONG, "step 5: 0 correct and 1 wrong leaves")
    assert len(page.all("li", "leaf")) == 3
    for mark in ("+0.33", "A ✓", "B ✗", "? ✗", "×2"):
        assert mark in page.text
    text = " ".join(page.text.split())
    assert "Best correct path: S = +0.67" in text and "Most confusing wrong path: S = −0.33" in text
    # Step 1 falls from V = 0 to +1/3 nowhere on the path to leaf 4: it errs at its end, where another leaf is right.
    assert "✓ effective, post B ✗ A ✓ A ✓ +1.67 +2 +1 +2" in text


def test_a_pair_stands_side_by_side_with_its_shared_steps_apart(run: RunFiles) -> None:
    page = page_of(run)
    text = " ".join(page.text.split())
    assert "Pair: reasoning" in text
    assert "✓ chosen S = +0.67, 10 tokens" in text
    assert "✗ rejected S = −0.33, 10 tokens" in text
    assert len(page.all("div", "shared")) == 1 and "◆ the two sides diverge here" in text
    assert text.count("Step 1: <script>") == 4  # tree, both paths, and once for both sides of the pair


def test_a_repaired_answer_is_shown(run: RunFiles) -> None:
    text = " ".join(page_of(run).text.split())
    assert "1 of 2 responses are wrong with the base and correct with the adapter" in text
    assert "✗ base: A" in text and "✓ Med-REFL: B" in text
    assert text.count(f"{OTHER.stem} A. marvutide B. zelorin ✓") == 1  # of the test's questions, with its options


def test_a_figure_is_as_wide_as_it_was_drawn(run: RunFiles) -> None:
    plots.save(plots.outcomes(STEPS_TABLE), run.figures / "outcomes")
    assert [image["width"] for image in page_of(run).all("img")] == ["691"]  # 7.2 inches, 96 pixels each


def test_a_random_pair_that_is_the_reasoning_pairs_twin_is_shown_only_if_there_is_no_other(run: RunFiles) -> None:
    (pair,) = read_table(run.pairs, PAIRS).to_dict("records")
    other = [{"role": "assistant", "content": "Another wrong one."}]
    twin, later = ({"kind": "random_cot", "pair_id": name} for name in ("a twin", "later"))
    write_table(run.pairs, pd.DataFrame([pair, pair | twin]), PAIRS)
    assert "Another wrong one." not in page_of(run).text and "Pair: random cot" in page_of(run).text
    write_table(run.pairs, pd.DataFrame([pair, pair | twin, pair | later | {"rejected": other}]), PAIRS)
    assert page_of(run).text.count("Another wrong one.") == 1


@pytest.mark.parametrize(("seconds", "text"), [(119.4, "119 s"), (239.6, "4 min 0 s"), (3601, "60 min 1 s")])
def test_a_stages_time_is_in_whole_minutes_and_seconds(run: RunFiles, seconds: float, text: str) -> None:
    write_manifest(run, {"stages": {"01_tree_rollout": {"seconds": seconds}}})
    assert f"01_tree_rollout {text} -" in " ".join(page_of(run).text.split())


def test_figures_stand_in_the_order_of_the_stages(run: RunFiles) -> None:
    for name in ("accuracy", "my_own", "tree"):
        (run.figures / f"{name}.png").write_bytes((run.figures / "outcomes.png").read_bytes())
    shown = [str(image["alt"]) for image in page_of(run).all("img")]
    assert [caption.split()[0] for caption in shown] == ["Accuracy", "Share", "Reasoning", "my"]


def test_the_verdict_and_the_results_come_first(run: RunFiles) -> None:
    (run.figures / "accuracy.png").write_bytes((run.figures / "outcomes.png").read_bytes())
    write_manifest(run, {})
    page = page_of(run)
    text = " ".join(page.text.split())
    verdict = "clinic, sampled: the adapter answers more questions correctly than its base (60.0% to 67.1%, +7.1 points"
    places = [text.index(part) for part in (verdict, "Accuracy of base and adapter", "Contents", "Details per model")]
    assert places == sorted(places) and not page.all("ul", "cautions")
    assert [name for name, _ in page.elements].index("img") < [name for name, _ in page.elements].index("nav")


def test_a_report_of_old_and_new_results_and_of_few_questions_says_so(run: RunFiles) -> None:
    write_manifest(run, {"stages": {"02_step_valuation": {"inputs": {"steps": "0" * 64}}}})
    rows = [score("base", 0.6, NAN), score("medrefl", 0.671, 0.071) | {"n": 12, "detectable": 0.4}]
    write_table(run.scores, pd.DataFrame(rows), SCORES)
    page = page_of(run)
    assert len(page.all("ul", "cautions")) == 1
    text = " ".join(page.text.split())
    assert "Old and new results are mixed (steps changed after 02_step_valuation): run 02_step_valuation again." in text
    assert "clinic, sampled: 12 questions can show only gains of about 40 points or more." in text


def test_a_note_is_a_banner(run: RunFiles) -> None:
    assert "The student knows no medicine" in page_of(run, "The student knows no medicine").text
    assert not page_of(run).all("p", "note")


def test_missing_pieces_are_said_in_a_sentence(run: RunFiles) -> None:
    write_table(run.pairs, pd.DataFrame(columns=PAIRS.names), PAIRS)
    responses = [response(OTHER, "base", None, "?"), response(OTHER, "medrefl", "A", "Answer: A")]
    write_table(run.responses / "clinic.parquet", pd.DataFrame(responses), RESPONSES)
    write_table(run.scores, pd.DataFrame([score("base", 0.6, NAN)]), SCORES)
    (run.figures / "outcomes.png").unlink()
    run.manifest.unlink()
    page = page_of(run)
    assert page.balanced
    for sentence in (
        "The run has no plots.",
        "The run has no pairs.",
        "No response is wrong with the base and correct with the adapter.",
        "The manifest has no stages.",
    ):
        assert sentence in page.text
    assert "? ✗" in page.text  # the tree is still there


def test_a_missing_table_is_an_error_that_names_its_maker(run: RunFiles) -> None:
    run.scores.unlink()
    with pytest.raises(MedReflError, match="scores.parquet is missing: 05_benchmark_evaluation makes it"):
        write_report(run)


def test_a_deep_tree_needs_no_recursion(run: RunFiles) -> None:
    deep = 3000
    chain = [step(0, None, 0, "", None, NAN), *(step(i, i - 1, i, f"Step {i}", None, NAN) for i in range(1, deep))]
    steps = pd.DataFrame([*chain, step(deep, deep - 1, deep, "Answer: B", "B", -1.0)])
    write_table(run.steps / "part-00000.parquet", steps, STEPS)
    write_table(run.values, value_table(steps), VALUES)
    write_table(run.pairs, pd.DataFrame(columns=PAIRS.names), PAIRS)
    page = page_of(run)
    assert page.balanced and len(page.all("details")) == 2 + deep + 1


def test_json_of_the_manifest_is_whole(run: RunFiles) -> None:
    text = page_of(run).text
    shown = text[text.index("Complete manifest") + len("Complete manifest") :]
    manifest = json.loads(shown[: shown.rindex("}") + 1])
    assert manifest["stages"]["03_pair_construction"]["figures"] == {"pairs": 1, "dropped": {"all_wrong": 17}}


def test_what_the_method_claims_is_shown_with_its_difference(run: RunFiles) -> None:
    assert "The run did not measure self-correction." in page_of(run).text
    rates = [
        dict(model=model, figure=figure, n=n, share=share, low=share - 0.05, high=share + 0.05, difference=difference,
             difference_low=difference - 0.04, difference_high=difference + 0.04)
        for model, figure, n, share, difference in (
            ("base", "repair rate", 200, 0.401, NAN),
            ("medrefl", "repair rate", 200, 0.523, 0.122),
            ("base", "fake, unasked", 0, NAN, NAN),
            ("medrefl", "fake, unasked", 7, 0.143, NAN),
        )
    ]  # fmt: skip
    write_table(run.self_correction, pd.DataFrame(rates), SELF_CORRECTION)
    text = " ".join(page_of(run).text.split())
    assert "repair rate 40.1 [35.1, 45.1] 52.3 [47.3, 57.3] +12.2 [+8.2, +16.2] 200" in text
    assert "fake, unasked - 14.3 [9.3, 19.3] - 0/7" in text
