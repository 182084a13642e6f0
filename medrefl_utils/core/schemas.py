"""The schema of every table that stages exchange: column, type, meaning.

Each table is a Parquet file with one of the schemas below; a field's ``doc`` metadata is its documentation
(``describe(STEPS)`` prints it). Words and symbols are those of the method: V is a step's value, S a path's.
"""

from __future__ import annotations

import pyarrow as pa


def _schema(**fields: tuple[pa.DataType, str]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, metadata={"doc": doc}) for name, (kind, doc) in fields.items()])


_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

QUESTIONS = _schema(
    question_id=(pa.string(), "stable id: the file's own, or a hash of stem and options"),
    stem=(pa.string(), "the question's text, without its options"),
    options=(pa.map_(pa.string(), pa.string()), "letter -> text, in the order shown"),
    gold=(pa.string(), "the letter of the right option"),
    source=(pa.string(), "where it came from: a benchmark's name, a file or a hub id"),
    split=(pa.string(), "train or test"),
)

STEPS = _schema(
    question_id=(pa.string(), "the tree's question"),
    node_id=(pa.int32(), "unique within the question; 0 is the root"),
    parent_id=(pa.int32(), "the step this one continues; null for the root"),
    depth=(pa.int16(), "0 for the root (the question itself)"),
    kind=(pa.string(), "root, step (inner) or leaf"),
    text=(pa.string(), "the step as the model wrote it, step boundary included; empty for the root"),
    token_ids=(pa.list_(pa.int32()), "the step's tokens; null where the generator does not give them"),
    answer=(pa.string(), "leaf: the letter it states; null where none can be read"),
    outcome=(pa.float32(), "leaf: +1 if its answer is the gold letter, else -1; NaN for other steps"),
    stop=(pa.string(), "leaf: answer, unreadable, depth, tokens, empty or repeat; null for other steps"),
    weight=(pa.int32(), "how many steps of the unmerged tree it stands for: identical siblings are one row"),
    n_tokens=(pa.int32(), "tokens of the step"),
    logprob=(pa.float32(), "sum of its tokens' log-probabilities, in nats"),
)

SCREENING = _schema(
    question_id=(pa.string(), "the question"),
    chains=(pa.int32(), "whole chains that were drawn to see whether it is worth a tree"),
    right=(pa.int32(), "how many of them end at the gold letter"),
)

VALUES = _schema(
    question_id=(pa.string(), "the tree's question"),
    node_id=(pa.int32(), "the step"),
    right=(pa.float64(), "C: right leaves at or below the step, weights counted"),
    wrong=(pa.float64(), "W: wrong leaves at or below the step, weights counted"),
    value=(pa.float64(), "step value V = (C - W) / (C + W)"),
)

_JUDGEMENT = pa.struct(
    [("prompt", pa.string()), ("reply", pa.string()), ("correctness", pa.int8()), ("logic", pa.int8())]
)

PAIRS = _schema(
    pair_id=(pa.string(), "hash of kind, prompt, chosen and rejected"),
    question_id=(pa.string(), "the question both sides answer"),
    kind=(pa.string(), "reasoning, reflection_mid, reflection_post or random_cot"),
    prompt=(_MESSAGES, "chat messages that end with the user's turn"),
    chosen=(_MESSAGES, "one assistant message"),
    rejected=(_MESSAGES, "one assistant message"),
    chosen_nodes=(pa.list_(pa.int32()), "node ids of the chosen path, from the root's child to the leaf"),
    rejected_nodes=(pa.list_(pa.int32()), "node ids of the rejected path"),
    chosen_value=(pa.float64(), "solution value S of the chosen path"),
    rejected_value=(pa.float64(), "solution value S of the rejected path"),
    left_nodes=(pa.list_(pa.int32()), "reflection: the wrong path that both sides begin with, up to where it is left"),
    chosen_taken=(pa.int32(), "reflection: the step of chosen_nodes at which the chosen side goes on"),
    rejected_taken=(pa.int32(), "reflection: likewise of the rejected side"),
    chosen_action=(pa.float64(), "reflection: action value A of the chosen side's correction"),
    rejected_action=(pa.float64(), "reflection: action value A of the rejected side's correction"),
    chosen_reflection=(pa.string(), "reflection: what the model wrote, as it wrote it"),
    rejected_reflection=(pa.string(), "reflection: likewise of the rejected side"),
    judgement=(
        _JUDGEMENT,
        "the judge's prompt, raw reply and scores, 1 to 5, of the chosen side; null without a judge",
    ),
    prompt_tokens=(pa.int32(), "tokens of the prompt as the student reads it, the header of its turn included"),
    chosen_tokens=(pa.int32(), "tokens of the chosen side with the student's tokenizer, prompt left out"),
    rejected_tokens=(pa.int32(), "tokens of the rejected side, likewise"),
)

REFLECTIONS = _schema(
    question_id=(pa.string(), "the question"),
    left=(pa.int32(), "the step after which the wrong path is left"),
    leaf=(pa.int32(), "the leaf of the path that is taken up"),
    prompt=(pa.string(), "what the writer was asked"),
    replies=(pa.list_(pa.string()), "what it wrote, each attempt as it stands"),
    faults=(pa.list_(pa.string()), "what was wrong with each attempt that was refused"),
    text=(pa.string(), "the reflection on one line; null where every attempt was refused"),
)

OVERLAPS = _schema(
    question_id=(pa.string(), "the training question"),
    other_id=(pa.string(), "the evaluation question"),
    other_source=(pa.string(), "its benchmark"),
    how=(pa.string(), "same (normalised), contained or reworded"),
    jaccard=(pa.float64(), "share of the word n-grams of both that both have"),
    containment=(pa.float64(), "share of the smaller one's word n-grams that the other has"),
)

TRAINING = _schema(
    step=(pa.int32(), "optimizer step, from 1"),
    loss=(pa.float64(), "mean DPO loss of the step's pairs; ln 2 where the adapter is still the reference"),
    margin=(pa.float64(), "mean reward of chosen minus rejected"),
    accuracy=(pa.float64(), "share of pairs with a positive margin"),
    chosen_logprob=(pa.float64(), "mean log-probability of the chosen responses, nats a response"),
    rejected_logprob=(pa.float64(), "mean log-probability of the rejected responses, nats a response"),
    chosen_reward=(pa.float64(), "mean reward of the chosen responses: beta times what they gained over the reference"),
    end_logprob=(pa.float64(), "mean log-probability of the end of turn after the chosen responses, nats; may be NaN"),
    grad_norm=(pa.float64(), "norm of the gradient before clipping"),
    learning_rate=(pa.float64(), "of the step"),
    held_out_loss=(pa.float64(), "loss of the held-out pairs after the step; NaN where they were not asked"),
    held_out_margin=(pa.float64(), "likewise their margin"),
    held_out_accuracy=(pa.float64(), "likewise their accuracy"),
)

REFERENCES = _schema(
    pair=(pa.string(), "hash of the pair's token ids"),
    chosen=(pa.float64(), "log-probability of the chosen response under the base, nats"),
    rejected=(pa.float64(), "log-probability of the rejected response under the base, nats"),
)

RESPONSES = _schema(
    question_id=(pa.string(), "the question answered"),
    stem_id=(pa.string(), "hash of the stem: questions that share it are one cluster of every interval"),
    content=(pa.string(), "hash of the stem and of the options in any order: ties the response to its question"),
    stem=(pa.string(), "the question's text, without its options"),
    options=(pa.map_(pa.string(), pa.string()), "letter -> text, as shown to the model"),
    source=(pa.string(), "the benchmark"),
    model=(pa.string(), "base or medrefl (base + adapter)"),
    protocol=(pa.string(), "published, sampled, greedy, self-consistency or budget"),
    run=(pa.int32(), "repetition, from 0"),
    response=(pa.string(), "the whole text the model wrote"),
    answer=(pa.string(), "the letter read from it; null where none can be read"),
    rule=(pa.string(), "the rule that read the answer"),
    stated_letter=(pa.string(), "the letter as written; null where there is none"),
    conflict=(pa.bool_(), "the letter as written is not that of the option whose text is given; the text counts"),
    gold=(pa.string(), "the right letter"),
    correct=(pa.bool_(), "answer equals gold; an unreadable answer is wrong"),
    judged=(pa.string(), "the letter that a judging model read where the rules read none; null without one"),
    n_tokens=(pa.int32(), "tokens written"),
    stop=(pa.string(), "end (the model closed its turn), length (cut) or forced (thinking cut, answer asked for)"),
    seconds=(pa.float64(), "its share of the time that the run's responses took together"),
    temperature=(pa.float64(), "of this run"),
    top_p=(pa.float64(), "of this run"),
)

SCORES = _schema(
    source=(pa.string(), "the benchmark"),
    protocol=(pa.string(), "published, sampled, greedy, self-consistency or budget"),
    model=(pa.string(), "base or medrefl"),
    n=(pa.int32(), "distinct questions"),
    clusters=(pa.int32(), "distinct stems: the unit that intervals draw"),
    runs=(pa.int32(), "responses per question"),
    accuracy=(pa.float64(), "strict: unreadable answers are wrong; each distinct question counts once"),
    accuracy_low=(pa.float64(), "95% interval, bootstrap over stems"),
    accuracy_high=(pa.float64(), "95% interval, bootstrap over stems"),
    accuracy_published=(pa.float64(), "as published: unreadable answers left out of the denominator"),
    accuracy_judged=(pa.float64(), "strict, with the judge's letter where the rules read none; null without a judge"),
    unreadable=(pa.float64(), "share of responses with no readable answer"),
    conflict=(pa.float64(), "share of responses whose letter is not that of the text beside it"),
    mean_tokens=(pa.float64(), "tokens a response"),
    mean_tokens_right=(pa.float64(), "tokens of a right response"),
    mean_tokens_wrong=(pa.float64(), "tokens of a wrong response"),
    tokens=(pa.int64(), "tokens of all responses"),
    seconds=(pa.float64(), "time of all responses"),
    gain=(pa.float64(), "accuracy minus the base's, paired; null for the base"),
    gain_low=(pa.float64(), "95% interval of the gain, paired bootstrap over stems"),
    gain_high=(pa.float64(), "95% interval of the gain, paired bootstrap over stems"),
    detectable=(pa.float64(), "the smallest gain that this many questions show at the 5% level with 80% power"),
    fixed=(pa.int32(), "responses wrong with the base and right with the adapter"),
    broken=(pa.int32(), "responses right with the base and wrong with the adapter"),
    mcnemar_p=(pa.float64(), "exact McNemar test of the first run, two-sided; null for the base"),
    mcnemar_runs=(pa.list_(pa.float64()), "the same of each run; null for the base"),
    holm_p=(pa.float64(), "mcnemar_p corrected for the benchmarks of the same protocol (Holm); null for the base"),
)

CONTINUATIONS = _schema(
    question_id=(pa.string(), "the question"),
    behind=(pa.string(), "where the model was put: behind a wrong step, a wrong answer or a right answer"),
    nodes=(pa.list_(pa.int32()), "the steps of the beginning, in the tree that it was taken from"),
    prefix=(pa.string(), "their text"),
    before=(pa.string(), "the answer of the path that the beginning was taken from"),
    model=(pa.string(), "base, medrefl or an arm of the ablation"),
    run=(pa.int32(), "repetition, from 0"),
    gold=(pa.string(), "the right letter"),
    text=(pa.string(), "what the model wrote on; behind an answer it has said 'Wait,' already"),
    answer=(pa.string(), "the letter it ends at; without a new one the old one; null where there is none"),
    reconsiders=(pa.bool_(), "it says that it looks again; behind an answer it was made to"),
    n_tokens=(pa.int32(), "tokens written"),
    stop=(pa.string(), "end (the model closed its turn) or length (cut)"),
)

SELF_CORRECTION = _schema(
    model=(pa.string(), "base, medrefl or an arm of the ablation"),
    figure=(pa.string(), "what was counted: see claims.claim_rates"),
    n=(pa.int32(), "texts"),
    share=(pa.float64(), "the share of them; null where there are none"),
    low=(pa.float64(), "95% interval, bootstrap over questions"),
    high=(pa.float64(), "95% interval, bootstrap over questions"),
    difference=(pa.float64(), "to the base, paired; null for the base"),
    difference_low=(pa.float64(), "95% interval of the difference"),
    difference_high=(pa.float64(), "95% interval of the difference"),
)

ABLATION = _schema(
    arm=(pa.string(), "base, or the kinds of pairs that the adapter was trained on, by the arm's name"),
    protocol=(pa.string(), "as in scores"),
    n_pairs=(pa.int32(), "pairs that each adapter was trained on; 0 for the base"),
    n=(pa.int32(), "distinct questions"),
    runs=(pa.int32(), "seeds: of pairs, adapter and sampling"),
    accuracy=(pa.float64(), "strict, mean over the seeds"),
    accuracy_low=(pa.float64(), "95% interval, bootstrap over stems"),
    accuracy_high=(pa.float64(), "95% interval, bootstrap over stems"),
    gain=(pa.float64(), "accuracy minus the base's, paired; null for the base"),
    gain_low=(pa.float64(), "95% interval of the gain, paired bootstrap over stems"),
    gain_high=(pa.float64(), "95% interval of the gain, paired bootstrap over stems"),
    gains=(pa.list_(pa.float64()), "the gain of each seed"),
    repair=(pa.float64(), "repair rate: behind a wrong step, the share that reaches the gold answer"),
    repair_low=(pa.float64(), "95% interval, bootstrap over questions"),
    repair_high=(pa.float64(), "95% interval, bootstrap over questions"),
    fake=(pa.float64(), "fake reflection rate: behind a wrong answer and 'Wait,', the share that keeps it"),
    fake_low=(pa.float64(), "95% interval, bootstrap over questions"),
    fake_high=(pa.float64(), "95% interval, bootstrap over questions"),
    mends=(pa.float64(), "the same reflection: wrong to right"),
    mends_low=(pa.float64(), "95% interval, bootstrap over questions"),
    mends_high=(pa.float64(), "95% interval, bootstrap over questions"),
    breaks=(pa.float64(), "the reflection behind a right answer: right to wrong"),
    breaks_low=(pa.float64(), "95% interval, bootstrap over questions"),
    breaks_high=(pa.float64(), "95% interval, bootstrap over questions"),
)


def describe(schema: pa.Schema) -> str:
    """The columns of a table, one line each: name, type, meaning."""
    return "\n".join(f"{f.name}: {f.type} - {f.metadata[b'doc'].decode()}" for f in schema)
