"""Leave out what does not fit into a model's context, before a model is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from medrefl_utils.core.dropped_rows import DropCounts
from medrefl_utils.core.records import Question
from medrefl_utils.exam import prompts
from medrefl_utils.knowledge.graph import KnowledgeGraph
from medrefl_utils.knowledge.paths import describe_path
from medrefl_utils.knowledge.question_paths import QuestionPaths
from medrefl_utils.models.context_limit import drop_too_long


def leave_out_long_paths(
    found: Sequence[QuestionPaths],
    graph: KnowledgeGraph,
    model: str,
    *,
    answer_in_prompt: bool,
    paths_in_prompt: bool = True,
    new_tokens: int,
) -> tuple[list[QuestionPaths], DropCounts]:
    """Mark the questions whose prompt for a chain does not fit into the writer's context as ``too_long``.

    Args:
        found: the questions with their paths.
        graph: the graph of the paths.
        model: folder or hub id of the writer.
        answer_in_prompt: as in ``write_chains``.
        paths_in_prompt: as in ``write_chains``.
        new_tokens: tokens that a chain may have.

    Returns:
        The questions in their order, and the counts (fault: ``too_long``).
    """
    texts = {
        one.question.question_id: [describe_path(graph, path) for path in one.chosen] if paths_in_prompt else []
        for one in found
    }

    def prompt(question: Question) -> prompts.Messages:
        return prompts.reasoning_chain(question, texts[question.question_id], answer_in_prompt=answer_in_prompt)

    asking = [one.question for one in found if not one.gap]
    kept, dropped = drop_too_long(asking, model, prompt=prompt, new_tokens=new_tokens)
    ids = {question.question_id for question in kept}
    marked = [one if one.gap or one.question.question_id in ids else replace(one, left_out="too_long") for one in found]
    return marked, dropped


def questions_that_fit(
    questions: Sequence[Question], chains: Mapping[str, Sequence[str]], model: str, *, new_tokens: int
) -> tuple[list[Question], DropCounts]:
    """Return the questions that fit into the filter's context with their own chain and any other's, and the counts.

    Each question is answered after another question's chain as well. So a chain that does not even fit behind its own
    question is left out first; then the longest of the others counts for all.

    Args:
        questions: those that have a chain.
        chains: {question_id: steps}.
        model: folder or hub id of the filter's model.
        new_tokens: tokens that an answer may have.
    """
    texts = {question_id: "\n".join(steps) for question_id, steps in chains.items()}

    def after(chain: str, question: Question) -> prompts.Messages:
        return [*prompts.exam(question), {"role": "assistant", "content": chain}]

    fitting, dropped = drop_too_long(
        questions, model, prompt=lambda question: after(texts[question.question_id], question), new_tokens=new_tokens
    )
    longest = max((texts[question.question_id] for question in fitting), key=len, default="")
    kept, more = drop_too_long(fitting, model, prompt=lambda question: after(longest, question), new_tokens=new_tokens)
    dropped.add(more)
    return kept, dropped
