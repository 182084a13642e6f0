"""Chains of reasoning along the paths of a graph: write them, hold them against the graph, filter and count them.

Published: one call is given question, answer and paths, and writes as if it found both itself. Ours: what it may not
say is checked, a refused chain is asked for again at most twice, and a rule can write instead of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.records import Sampling
from medrefl_utils.core.schemas import CHAINS
from medrefl_utils.exam import prompts
from medrefl_utils.exam.answers.thinking import split_thinking
from medrefl_utils.knowledge.chains.filter import CONDITIONS, filter_fault
from medrefl_utils.knowledge.chains.rule import rule_chain
from medrefl_utils.knowledge.chains.support import SUPPORT, SupportChecker
from medrefl_utils.knowledge.chains.text import (
    ChainText,
    chain_lines,
    format_response,
    names_answer_early,
    numbered_steps,
    read_chain,
)
from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.knowledge.paths import describe_path
from medrefl_utils.knowledge.question_paths import QuestionPaths
from medrefl_utils.models.asking import Reply, ask_until_valid, count_faults
from medrefl_utils.models.generators.interface import Generator

WRITERS = ("rule", "model")

Written = Mapping[str, Reply[ChainText]]
"""{question_id: the chain with every attempt}; a rule's chain has no prompt and no attempts."""


def write_chains_by_rule(found: Sequence[QuestionPaths], graph: KnowledgeGraph) -> Written:
    """Write a chain by rule for each question with chosen paths."""
    return {one.question.question_id: Reply([], rule_chain(one, graph)) for one in found if not one.gap}


def write_chains(
    found: Sequence[QuestionPaths],
    graph: KnowledgeGraph,
    generator: Generator,
    *,
    answer_in_prompt: bool,
    paths_in_prompt: bool = True,
    sampling: Sampling,
    seed: int,
) -> tuple[Written, DropCounts]:
    """Let a model write a chain for each question with chosen paths.

    Args:
        found: the questions with their paths.
        graph: the graph of the paths.
        generator: the model that writes.
        answer_in_prompt: tell it the right option (published). Without it, paths to the right option alone still give
            it away: see ``path_targets`` of ``find_question_paths``.
        paths_in_prompt: show it the paths (published). Without them it writes from what it knows, on the same
            questions: a control of what the graph gives.
        sampling: of its replies.
        seed: of its replies.

    Returns:
        The chains, and the counts. Faults: ``chain_`` and the fault of the last attempt, see ``read_chain``.
    """
    asking = [one for one in found if not one.gap]
    texts = [[describe_path(graph, path) for path in one.chosen] if paths_in_prompt else [] for one in asking]
    asked = ask_until_valid(
        generator,
        [
            (
                prompts.reasoning_chain(one.question, text, answer_in_prompt=answer_in_prompt),
                partial(read_chain, question=one.question, thinking_open=generator.thinking_open),
            )
            for one, text in zip(asking, texts, strict=True)
        ],
        sampling=sampling,
        seed=seed,
        title="chains",
    )
    where = [f"question {one.question.question_id!r}" for one in asking]
    written = {one.question.question_id: reply for one, reply in zip(asking, asked, strict=True)}
    return written, count_faults(asked, "chain", where)


def chain_table(
    found: Sequence[QuestionPaths],
    written: Written,
    graph: KnowledgeGraph,
    checker: SupportChecker,
    *,
    chain_format: str,
) -> pd.DataFrame:
    """Return a row per question (columns of CHAINS), with or without a chain, before any filter.

    Args:
        found: the questions with their paths.
        written: the chains.
        graph: the graph of the paths.
        checker: marks the steps.
        chain_format: one of ``CHAIN_FORMATS``.

    Raises:
        MedReflError: an unknown format.
    """
    rows = []
    for one in found:
        question = one.question
        reply = written.get(question.question_id)
        chain = reply.value if reply else None
        reason = one.gap or ("" if chain else f"chain_{reply.faults[-1]}")
        marks = checker.marks(chain.steps) if chain else []
        row = {
            "question_id": question.question_id,
            "source": question.source,
            "gold": question.gold,
            "entities": _entities(one, graph),
            "pairs": one.pairs,
            "connected": one.connected,
            "n_paths": one.n_paths,
            "paths": [describe_path(graph, path) for path in one.chosen],
            "writer_prompt": reply.messages[-1]["content"] if reply and reply.messages else None,
            "replies": reply.replies if reply else [],
            "faults": reply.faults if reply else [],
            "named_early": _named_early(one, reply),
            "chain": "\n".join(chain.steps) if chain else None,
            "conclusion": "\n".join([*chain.conclusion, f"Answer: {chain.letter}"]) if chain else None,
            "n_steps": len(chain.steps) if chain else None,
            "support": marks if chain else None,
            "kept": chain is not None,
            "reason": reason or None,
            "prompt": prompts.exam(question),
            "completion": [{"role": "assistant", "content": format_response(chain, chain_format)}] if chain else None,
        }
        rows.append(
            row
            | {mark: marks.count(mark) if chain else None for mark in SUPPORT}
            | {f"pass_{condition}": float("nan") for condition in CONDITIONS}
        )
    return _typed(pd.DataFrame(rows, columns=CHAINS.names))


def filter_chains(
    table: pd.DataFrame, rates: pd.DataFrame | None, *, min_pass: float, min_lift: float, max_contradicted: int
) -> pd.DataFrame:
    """Return the table of chains with the filter's pass rates, and keep only the chains that pass.

    Args:
        table: what ``chain_table`` returns.
        rates: what ``filter.pass_rates`` returns for its chains; None where no filter ran. A chain without a row is
            left out as ``too_long``.
        min_pass: smallest share of right answers with the chain.
        min_lift: smallest difference to the share without it.
        max_contradicted: largest number of steps that the graph contradicts.
    """
    names = [f"pass_{condition}" for condition in CONDITIONS]
    merged = table
    if rates is not None:
        merged = table.drop(columns=names).merge(rates[["question_id", *names]], on="question_id", how="left")
    reasons = []
    for row in merged.to_dict("records"):
        reason = row["reason"] if isinstance(row["reason"], str) else ""
        if not reason and row["contradicted"] > max_contradicted:
            reason = "contradicted"
        if not reason and rates is not None:
            rated = row["pass_with"] == row["pass_with"]  # not NaN
            reason = filter_fault(row, min_pass=min_pass, min_lift=min_lift) if rated else "too_long"
        reasons.append(reason or None)
    kept = [reason is None for reason in reasons]
    return _typed(merged.assign(reason=reasons, kept=kept)[CHAINS.names])


def chain_figures(table: pd.DataFrame) -> dict[str, Any]:
    """Return the key figures of a table of chains (columns of CHAINS); a share of nothing is NaN.

    - ``linked_question``, ``linked_answer``: shares of questions with an entity in the stem, and in the right option.
    - ``entities_per_question``, ``paths_per_pair`` (of connected pairs), ``with_path`` (share of questions).
    - ``chains``, ``kept``: counts; ``refused``: {fault: refused attempts}; ``left_out``: {reason: questions}.
    - ``named_early``: share of first attempts that name the answer before their conclusion.
    - ``steps``: shares of the chains' steps that are supported, contradicted and unknown.
    - ``pass_with``, ``pass_without``, ``pass_other``, ``lift``: the filter's pass rates, means over questions.
    """
    sides = [{one["side"] for one in entities} for entities in table["entities"]]
    chains = table[table["chain"].notna()]
    rated = chains[chains["pass_with"].notna()]
    attempts = pd.Series([fault for faults in table["faults"] for fault in faults], dtype=object)
    steps = {mark: int(chains[mark].sum()) for mark in SUPPORT}
    rates = {f"pass_{condition}": float(rated[f"pass_{condition}"].mean()) for condition in CONDITIONS}
    early = table["named_early"].dropna()
    return {
        "questions": len(table),
        "linked_question": _share(sum("question" in side for side in sides), len(table)),
        "linked_answer": _share(sum(gold in side for gold, side in zip(table["gold"], sides, strict=True)), len(table)),
        "entities_per_question": _share(sum(map(len, table["entities"])), len(table)),
        "pairs": int(table["pairs"].sum()),
        "connected_pairs": int(table["connected"].sum()),
        "paths_per_pair": _share(int(table["n_paths"].sum()), int(table["connected"].sum())),
        "with_path": _share(int((table["n_paths"] > 0).sum()), len(table)),
        "chains": len(chains),
        "kept": int(table["kept"].sum()),
        "refused": attempts.value_counts().to_dict(),
        "left_out": table["reason"].dropna().value_counts().to_dict(),
        "named_early": _share(int(early.astype(bool).sum()), len(early)),
        "steps": {mark: _share(count, sum(steps.values())) for mark, count in steps.items()},
        **(rates | {"lift": rates["pass_with"] - rates["pass_without"]} if len(rated) else {}),
    }


def marked_steps(row: Mapping[str, Any]) -> pd.DataFrame:
    """Return the steps of one chain with the graph's mark on each: a row of CHAINS -> columns step and graph.

    A question without a chain has one row: its last refused reply, or nothing, with the reason.
    """
    if not isinstance(row["chain"], str):
        return pd.DataFrame({"step": list(row["replies"])[-1:] or [""], "graph": [row["reason"]]})
    steps = numbered_steps(row["chain"].split("\n"))
    return pd.DataFrame({"step": steps, "graph": list(row["support"])})


def chain_steps(table: pd.DataFrame) -> dict[str, list[str]]:
    """Return the chains of a table as {question_id: steps}, what the filter takes."""
    chains = table[table["chain"].notna()]
    return {row.question_id: row.chain.split("\n") for row in chains.itertuples()}


def _entities(one: QuestionPaths, graph: KnowledgeGraph) -> list[dict[str, Any]]:
    sides = [("question", one.asked), *one.answers.items()]
    nodes = graph.nodes[["type", "id", "name"]]
    return [
        {"side": side, "text": mention.text, "start": mention.start, "end": mention.end}
        | nodes.iloc[mention.node].to_dict()
        | {"rule": mention.rule, "score": float(mention.score), "negated": mention.negated}
        for side, mentions in sides
        for mention in mentions
    ]


def _named_early(one: QuestionPaths, reply: Reply[ChainText] | None) -> bool | None:
    """Say whether the first attempt names the answer early; None where nothing was written."""
    if reply is None:
        return None
    if not reply.replies:
        return False  # a rule writes its conclusion last
    lines = chain_lines(split_thinking(reply.replies[0])[1])
    return names_answer_early(lines, one.question) if lines else None


def _share(part: float, whole: int) -> float:
    return part / whole if whole else float("nan")


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with nullable columns of whole numbers, as Parquet has them."""
    return table.astype({name: "Int32" for name in ("n_steps", *SUPPORT)}).astype({"named_early": "boolean"})
