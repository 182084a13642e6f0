"""Chains along a graph's paths: the rule against the clinic's truth, what a model may not write, the formats."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from medrefl_utils.core import CHAINS, Continuation, MedReflError, Question, Sampling, read_table, write_table
from medrefl_utils.exam import clinic, extract_answer, load_benchmark, prompts, split_thinking
from medrefl_utils.knowledge import (
    CHAIN_FORMATS,
    ChainText,
    KnowledgeGraph,
    Linker,
    NameEmbeddings,
    SupportChecker,
    chain_figures,
    chain_steps,
    chain_table,
    choose_paths_by_model,
    filter_chains,
    find_question_paths,
    format_response,
    link_by_model,
    load_graph,
    marked_steps,
    question_texts,
    read_chain,
    read_choice,
    read_graph,
    rule_chain,
    write_chains,
    write_chains_by_rule,
)
from medrefl_utils.knowledge.chains.phrases import edge_sentences
from medrefl_utils.knowledge.chains.text import chain_lines, names_answer_early
from tests.test_reflections import Script

LIMITS = dict(max_hops=4, max_paths=50, paths_per_pair=3, max_chosen=12)
CASES = clinic.make_cases(120, seed=21)
QUESTION = Question("q", "Fever and rash?", {"A": "zelorin", "B": "marvutide", "C": "oxpril"}, "B")
GOOD = (
    "Step 1: Fever goes with marbosis.\nStep 2: A rash goes with it too.\nStep 3: Marbosis needs marvutide.\nAnswer: B"
)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> KnowledgeGraph:
    return load_graph("clinic", folder=tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def found(graph):
    return find_question_paths([case.question for case in CASES], graph, Linker(graph).link, **LIMITS, seed=0)


def small_graph(folder: Path, *edges: str, types: str = "disease") -> KnowledgeGraph:
    """A graph of edges "relation|type:name|type:name"."""
    rows = ["display_relation,x_id,x_type,x_name,y_id,y_type,y_name"]
    for edge in edges:
        relation, *ends = edge.split("|")
        cells = [cell for end in ends for kind, name in [end.split(":")] for cell in (name, kind, name)]
        rows.append(",".join([relation, *cells]))
    path = folder / "graph.csv"
    path.write_text("\n".join(rows) + "\n")
    return read_graph(path, types=(types,))


def test_every_clinic_question_has_a_path(found) -> None:
    assert [one.question.question_id for one in found if one.gap] == []
    for case, one in zip(CASES, found, strict=True):
        assert [mention.text for mention in one.asked] == list(case.findings)
        assert one.pairs == len(case.findings) == one.connected


def test_the_rules_chains_are_true_and_end_at_gold(graph, found) -> None:
    for case, one in zip(CASES, found, strict=True):
        lines = format_response(rule_chain(one, graph), "steps").split("\n")
        assert [clinic.is_true(case, lines[:i], line) for i, line in enumerate(lines)] == [True] * len(lines)
        # One line an elimination, one a relation, the options, the answer: as the clinic's own solver.
        assert len(lines) == len(clinic.solve(case))


def test_a_node_that_most_entities_share_ranks_before_a_lonelier_one(tmp_path) -> None:
    """Both diseases lead to the drug; three findings meet in one of them, although it is the larger hub."""
    edges = [f"presents|disease:korvosis|effect/phenotype:{name}" for name in ("fever", "rash", "cough", "chills")]
    edges += ["presents|disease:lumitis|effect/phenotype:fever"]
    edges += [f"treats|drug:zelorin|disease:{name}" for name in ("korvosis", "lumitis")]
    graph = small_graph(tmp_path, *edges)
    question = Question("q", "Fever, rash and cough?", {"A": "zelorin", "B": "oxpril"}, "A")
    [one] = find_question_paths([question], graph, Linker(graph).link, **LIMITS, seed=0)
    korvosis, lumitis = graph.number("disease", "korvosis"), graph.number("disease", "lumitis")
    fever = graph.number("effect/phenotype", "fever")
    assert [path.nodes[1] for path in one.ranked if path.nodes[0] == fever] == [korvosis, lumitis]
    assert rule_chain(one, graph) == ChainText(
        (
            "fever suggests korvosis, lumitis.",
            "rash leaves korvosis.",
            "cough leaves korvosis.",
            "zelorin treats korvosis.",
        ),
        ("A. zelorin yes, B. oxpril no.",),
        "A",
    )


def test_a_denied_finding_starts_no_path_and_options_can_be_ends(tmp_path) -> None:
    graph = small_graph(
        tmp_path,
        "presents|disease:korvosis|effect/phenotype:fever",
        "presents|disease:korvosis|effect/phenotype:rash",
        "presents|disease:lumitis|effect/phenotype:rash",
    )
    question = Question("q", "A rash, but no fever?", {"A": "korvosis", "B": "lumitis"}, "B")
    link = Linker(graph).link
    [gold] = find_question_paths([question], graph, link, **LIMITS, seed=0)
    [every] = find_question_paths([question], graph, link, **LIMITS, seed=0, path_targets="options")
    rash = graph.number("effect/phenotype", "rash")
    assert {path.nodes[0] for path in gold.chosen} == {rash}
    ends = [[graph.names[path.nodes[-1]] for path in one.chosen] for one in (gold, every)]
    assert ends == [["lumitis"], ["korvosis", "lumitis"]]
    with pytest.raises(MedReflError, match="path_targets is 'all', expected one of gold, options"):
        find_question_paths([question], graph, link, **LIMITS, seed=0, path_targets="all")


def test_paths_between_the_entities_that_a_model_lists(graph) -> None:
    """As notebook 08 does with ``linking: model``: the mentions of all texts come first."""
    question = CASES[0].question
    kinds = {"effect/phenotype": CASES[0].findings, "": (question.options[question.gold],)}
    listed = [f"{words} | {kind}" for kind, names in kinds.items() for words in names]
    script = Script(lambda prompt, attempt: "\n".join(line for line in listed if line.split(" | ")[0] in prompt))
    texts = question_texts([question], "gold")
    assert texts == [question.stem, question.options[question.gold]]
    options = dict(sampling=Sampling(0.0, 1.0, 64), seed=0)
    mentions, dropped = link_by_model(texts, graph, script, NameEmbeddings(graph), **options)
    link = dict(zip(texts, mentions, strict=True)).__getitem__
    [by_model] = find_question_paths([question], graph, link, **LIMITS, seed=0)
    [offline] = find_question_paths([question], graph, Linker(graph).link, **LIMITS, seed=0)
    assert by_model.chosen == offline.chosen and not sum(dropped.faults.values())
    assert set(question_texts([question], "options")) == {question.stem, *question.options.values()}


def test_each_gap_has_its_name(tmp_path) -> None:
    graph = small_graph(
        tmp_path,
        "presents|disease:korvosis|effect/phenotype:fever",
        "presents|disease:lumitis|effect/phenotype:rash",
    )
    asked = [
        Question("1", "A cough?", {"A": "korvosis", "B": "x"}, "A"),
        Question("2", "A fever?", {"A": "korvosis", "B": "x"}, "B"),
        Question("3", "A fever?", {"A": "korvosis", "B": "lumitis"}, "B"),
        Question("4", "No fever?", {"A": "korvosis", "B": "lumitis"}, "A"),
        Question("5", "A fever?", {"A": "korvosis", "B": "lumitis"}, "A"),
    ]
    found = find_question_paths(asked, graph, Linker(graph).link, **LIMITS, seed=0)
    assert [one.gap for one in found] == ["no_entity", "no_answer_entity", "no_path", "no_entity", ""]


@pytest.mark.parametrize(
    ("edge", "sentence"),
    [
        ("presents|disease:flu|effect/phenotype:fever", "flu presents with fever."),
        ("presents|effect/phenotype:fever|disease:flu", "flu presents with fever."),  # PrimeKG has both directions
        ("indication|disease:flu|drug:oxpril", "oxpril is used to treat flu."),
        ("arises from|disease:flu|biological_process:leak", "flu arises from leak."),
        ("parent-child|disease:flu|disease:fever", "flu and fever are connected (parent-child)."),
        ("a {new} one|disease:flu|drug:oxpril", "flu and oxpril are connected (a {new} one)."),
    ],
)
def test_an_edge_is_said_from_the_node_that_acts(tmp_path, edge: str, sentence: str) -> None:
    graph = small_graph(tmp_path, edge)
    assert edge_sentences(graph, 0, 1) == edge_sentences(graph, 1, 0) == [sentence]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, ""),
        (GOOD.replace("Step ", "**Step "), ""),
        ("<think>The given answer is B.</think>" + GOOD, ""),
        ("Fever goes with marbosis. A rash goes with it too. It needs marvutide. The answer is B.", ""),
        ("Step 1: Given the fever, marbosis is likely.\nStep 2: The provided history fits.\nAnswer: B", ""),
        (GOOD.replace("Answer: B", "Step 4: So the best option is B. marvutide.\nAnswer: B"), ""),
        ("  \n", "empty"),
        ("<think>Fever goes with", "empty"),
        (GOOD.replace("Fever", "By the given connections, fever"), "leak"),
        (GOOD.replace("Fever", "The knowledge graph says that fever"), "leak"),
        (GOOD.replace("Fever", "I was told the answer, and fever"), "leak"),
        (GOOD.replace("Fever", "Since the correct option is marvutide, fever"), "leak"),
        (GOOD.replace("Fever", "Connection 2 shows that fever"), "leak"),
        (GOOD.replace("goes with marbosis", "-[presents]- marbosis"), "leak"),
        (GOOD.replace("Answer: B", "Option B is right.\nOption A is no drug for it.\nAnswer: B"), ""),
        (GOOD.replace("Answer: B", "Answer: A"), "elsewhere"),
        ("Step 1: Fever is common.\nStep 2: A rash is not.\nStep 3: It goes on.", "unreadable"),
        ("The answer is B.\n" + GOOD, "letter"),
        (GOOD.replace("Fever", "Option B: fever"), "letter"),
        (GOOD.replace("Step 2: A rash", "Answer: B\nStep 2: A rash"), "letter"),
        ("Step 1: Fever needs marvutide.\nAnswer: B", "short"),
        ("Answer: B", "short"),
    ],
)
def test_what_a_chain_may_not_be(text: str, fault: str) -> None:
    chain, found = read_chain(Continuation(text, (), 0.0, "end"), QUESTION)
    assert found == fault and (chain is None) == bool(fault)


def test_a_chain_that_names_its_answer_before_its_conclusion_is_counted() -> None:
    lines = chain_lines(GOOD)
    assert lines[0] == "Fever goes with marbosis." and not names_answer_early(lines, QUESTION)
    assert names_answer_early([*lines[:2], "The answer is B.", *lines[2:]], QUESTION)
    assert not names_answer_early([*lines[:3], "So the answer is B.", lines[3]], QUESTION)
    assert not names_answer_early([*lines[:1], "The answer is A.", *lines[1:]], QUESTION)


def test_a_chain_that_was_cut_off_fails() -> None:
    assert read_chain(Continuation(GOOD, (), 0.0, "length"), QUESTION) == (None, "cut")


def test_the_conclusion_is_cut_where_the_answer_is_stated() -> None:
    text = GOOD.replace("Answer: B", "Step 4: So the best option is B. marvutide.\n**Answer: B**")
    chain, _ = read_chain(Continuation(text, (), 0.0, "end"), QUESTION)
    assert chain.steps == ("Fever goes with marbosis.", "A rash goes with it too.", "Marbosis needs marvutide.")
    assert chain.conclusion == ("So the best option is B. marvutide.",) and chain.letter == "B"


@pytest.mark.parametrize("form", CHAIN_FORMATS)
def test_every_format_reads_back_as_the_same_answer_and_thinking(form: str) -> None:
    chain = ChainText(("Fever goes with marbosis.", "It needs marvutide."), ("So marvutide it is.",), "B")
    text = format_response(chain, form)
    assert extract_answer(text, QUESTION.options).letter == "B" and text.endswith("\nAnswer: B")
    thinking, told = split_thinking(text)
    if form == "steps":
        assert text == (
            "Step 1: Fever goes with marbosis.\nStep 2: It needs marvutide.\nStep 3: So marvutide it is.\nAnswer: B"
        )
    else:
        assert "It needs marvutide." in thinking and told.strip() == "So marvutide it is.\nAnswer: B"
        assert {"huatuo": "## Final Response", "medreason": "## Final Answer", "think": "</think>"}[form] in text


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(MedReflError, match="chain_format is 'json', expected one of steps, huatuo, medreason, think"):
        format_response(ChainText(("a", "b"), (), "B"), "json")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Chosen: 3, 1", (3, 1)),
        ("**Chosen:** [2] and [2], [4]", (2, 4)),
        ("I think so.\nChosen: 1\nNo.\nChosen: 2, 3, 1, 4", (2, 3, 1)),
        ("Chosen: none", ()),
        ("<think>Chosen: 9</think>Chosen: 4", (4,)),
        ("Chosen: 5", None),  # there is none
        ("Chosen: 0", None),
        ("3, 1", None),
    ],
)
def test_a_choice_names_paths_that_there_are(text: str, numbers: tuple[int, ...] | None) -> None:
    assert read_choice(Continuation(text, (), 0.0, "end"), n=4, most=3)[0] == numbers


def test_a_model_chooses_by_number_and_an_unreadable_choice_is_counted(graph, found) -> None:
    few = found[:3]
    script = Script(lambda prompt, attempt: "Chosen: 2" if few[0].question.stem in prompt else "all of them")
    asking = dict(max_chosen=3, answer_in_prompt=True, sampling=Sampling(), seed=0)
    chosen, dropped = choose_paths_by_model(few, graph, script, **asking)
    assert chosen[0].chosen == (few[0].ranked[1],) and dropped == {"choice_unreadable": 2}
    assert [one.gap for one in chosen] == ["", "no_choice", "no_choice"]
    assert all("The right option is" in prompt[0]["content"] for prompt, _ in script.asked)


def test_a_refused_chain_is_asked_again_and_every_attempt_is_kept(graph, found, tmp_path) -> None:
    few = found[:3]

    def reply(prompt: str, attempt: int) -> str:
        one = next(one for one in few if one.question.stem in prompt)
        good = format_response(rule_chain(one, graph), "steps")
        if one is few[0]:
            return good
        return good if one is few[1] and attempt == 1 else f"Answer: {one.question.gold}"

    script = Script(reply)
    written, dropped = write_chains(few, graph, script, answer_in_prompt=False, sampling=Sampling(), seed=0)
    assert dropped == {"chain_short": 1} and len(script.asked) == 1 + 2 + 3
    assert all("Connections:" in prompt[0]["content"] for prompt, _ in script.asked)
    alone, settings = Script(reply), dict(answer_in_prompt=False, sampling=Sampling(), seed=0)
    control, _ = write_chains(few, graph, alone, paths_in_prompt=False, **settings)
    assert control.keys() == written.keys() and control[few[0].question.question_id].value is not None
    assert all("Connections:" not in prompt[0]["content"] for prompt, _ in alone.asked)
    assert all("The right option is" not in prompt[0]["content"] for prompt, _ in script.asked)
    checker = SupportChecker(graph, Linker(graph).link)
    table = chain_table(few, written, graph, checker, chain_format="steps")
    write_table(tmp_path / "chains.parquet", table, CHAINS)
    table = read_table(tmp_path / "chains.parquet", CHAINS)
    assert list(table["kept"]) == [True, True, False] and table["reason"].iloc[2] == "chain_short"
    assert [len(replies) for replies in table["replies"]] == [1, 2, 3]
    assert [list(faults) for faults in table["faults"]] == [[], ["short"], ["short"] * 3]
    assert [m["content"] for m in table["prompt"].iloc[0]] == [prompts.exam(few[0].question)[0]["content"]]
    assert marked_steps(table.iloc[2].to_dict()).to_numpy().tolist() == [[table["replies"].iloc[2][-1], "chain_short"]]
    assert table["completion"].iloc[2] is None and table["named_early"].tolist() == [False, False, False]


def test_marks_against_the_clinics_truth(graph) -> None:
    """Relations are functional in the clinic, so that a false one is contradicted; an elimination may also be short."""
    checker = SupportChecker(graph, Linker(graph).link)
    relations, eliminations = Counter(), Counter()
    beliefs = clinic.misconceptions()
    for number, case in enumerate(clinic.make_cases(400, seed=5)):
        steps = clinic.solve(case, random.Random(number), slip=0.2, misled=0.8, beliefs=beliefs)
        for place, step in enumerate(steps[:-2]):
            truth, mark = clinic.is_true(case, steps[:place], step), checker.mark(step.split(": ", 1)[1])
            if " suggests " in step or " leaves " in step:
                eliminations[truth, mark] += 1
            elif "fits best" in step:
                assert mark == "unknown"
            else:
                relations[truth, mark] += 1
    assert set(relations) == {(True, "supported"), (False, "contradicted")}
    assert relations[False, "contradicted"] > 50
    # An elimination that lost a disease by error names true edges only, so it looks supported. (With a fifth of all
    # eliminations in error, four of five supported ones are true.)
    precision = eliminations[True, "supported"] / sum(n for (_, mark), n in eliminations.items() if mark == "supported")
    recall = eliminations[True, "supported"] / sum(n for (truth, _), n in eliminations.items() if truth)
    assert precision > 0.75 and recall == 1.0
    assert not any(mark == "contradicted" for _, mark in eliminations)


def test_marks_by_hand(tmp_path) -> None:
    """Six diseases with one cause each: there the relation is functional; findings are shared, so theirs is not."""
    names = ["korvosis", "lumitis", "arvosis", "belkitis", "cardemia", "dovalgia"]
    edges = [f"arises from|disease:{name}|biological_process:{name[:3]} leak" for name in names]
    edges += [f"presents|disease:{name}|effect/phenotype:fever" for name in names[:2]]
    edges += ["presents|disease:korvosis|effect/phenotype:rash"]
    graph = small_graph(tmp_path, *edges)
    checker = SupportChecker(graph, Linker(graph).link)
    assert checker.marks(
        [
            "Fever suggests korvosis and lumitis.",
            "A rash suggests lumitis.",
            "Korvosis arises from kor leak.",
            "Korvosis arises from lum leak.",
            "Korvosis arises from kor leak, lumitis from lum leak.",
            "Korvosis without fever arises from lum leak.",
            "Korvosis it is.",
            "Nothing is known.",
        ]
    ) == ["supported", "unknown", "supported", "contradicted", "supported", "unknown", "unknown", "unknown"]


def test_the_figures_of_a_table_by_hand(graph, found) -> None:
    few = found[:4]
    table = chain_table(
        few, write_chains_by_rule(few, graph), graph, SupportChecker(graph, Linker(graph).link), chain_format="steps"
    )
    ids = [one.question.question_id for one in few]
    rates = table[["question_id"]].assign(
        pass_with=[1.0, 0.5, 0.0, 1.0], pass_without=[0.5, 0.5, 0.0, 1.0], pass_other=[0.0, 0.25, 0.0, float("nan")]
    )
    kept = filter_chains(table, rates[:3], min_pass=0.5, min_lift=0.25, max_contradicted=0)
    assert list(kept["kept"]) == [True, False, False, False]
    assert list(kept["reason"])[1:] == ["low_lift", "low_pass", "too_long"]
    figures = chain_figures(kept)
    assert (figures["questions"], figures["chains"], figures["kept"]) == (4, 4, 1)
    assert (figures["pass_with"], figures["pass_without"]) == (0.5, pytest.approx(1 / 3))
    assert figures["lift"] == pytest.approx(1 / 6) and figures["pass_other"] == pytest.approx(1 / 12)
    assert figures["linked_question"] == figures["linked_answer"] == figures["with_path"] == 1.0
    assert figures["steps"] == {"supported": 1.0, "contradicted": 0.0, "unknown": 0.0}
    assert figures["left_out"] == {"low_lift": 1, "low_pass": 1, "too_long": 1} and figures["named_early"] == 0.0
    unfiltered = filter_chains(table, None, min_pass=1.0, min_lift=1.0, max_contradicted=0)
    assert unfiltered["kept"].all() and "pass_with" not in chain_figures(unfiltered)
    worse = table.assign(contradicted=[0, 1, 2, 0])
    assert list(filter_chains(worse, None, min_pass=0, min_lift=-1, max_contradicted=1)["kept"]) == [
        *(True, True, False, True)
    ]
    assert list(chain_steps(table)) == ids
    marked = marked_steps(table.iloc[0].to_dict())
    assert list(marked.columns) == ["step", "graph"] and marked["step"].iloc[0].startswith("Step 1: ")


def test_real_vignettes_on_a_real_graph(shared_data, tmp_path) -> None:
    """MedQA on a sample of Hetionet, without a model: what the rule says stands in the graph."""
    file = shared_data / "knowledge" / "hetionet_sample.csv"
    if not file.is_file():
        pytest.skip("no graph")
    graph = load_graph(str(file), folder=tmp_path)
    assert load_graph(str(file), folder=tmp_path).nodes.equals(graph.nodes)  # from its cache
    link = Linker(graph).link
    source = str(shared_data / "benchmarks" / "medqa_usmle_5op_test.jsonl")
    asked = load_benchmark(source, split="test", limit=24, offset=0, seed=0, answer_base="auto")
    found = find_question_paths(asked, graph, link, **LIMITS, seed=0)
    table = chain_table(
        found, write_chains_by_rule(found, graph), graph, SupportChecker(graph, link), chain_format="steps"
    )
    figures = chain_figures(table)
    assert figures["linked_question"] > 0.8 and figures["chains"] >= 5 and figures["steps"]["supported"] > 0.85
    told = "\n".join(table["chain"].dropna())
    assert "Clopidogrel treats coronary artery disease." in told and "\n\n" not in told
    for row, question in zip(table.itertuples(), asked, strict=True):
        if row.kept:
            assert extract_answer(row.completion[0]["content"], question.options).letter == question.gold
