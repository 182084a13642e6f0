"""Define the schema of every table that stages exchange: column, type, meaning.

Each table is a Parquet file with one of the schemas below. A field's ``doc`` metadata documents it, and
``describe(STEPS)`` prints it. Words and symbols are those of the method: V is the value of a step, S that of a path.
"""

from __future__ import annotations

import pyarrow as pa


def _schema(**fields: tuple[pa.DataType, str]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, metadata={"doc": doc}) for name, (kind, doc) in fields.items()])


_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

QUESTIONS = _schema(
    question_id=(pa.string(), "stable id: from the file, or a hash of stem and options"),
    stem=(pa.string(), "the question's text, without its options"),
    options=(pa.map_(pa.string(), pa.string()), "letter -> text, in the order shown"),
    gold=(pa.string(), "the letter of the right option"),
    source=(pa.string(), "the source: a benchmark's name, a file or a hub id"),
    split=(pa.string(), "train or test"),
)

STEPS = _schema(
    question_id=(pa.string(), "the tree's question"),
    node_id=(pa.int32(), "unique within the question; 0 is the root"),
    parent_id=(pa.int32(), "the step this one continues; null for the root"),
    depth=(pa.int16(), "0 for the root (the question itself)"),
    kind=(pa.string(), "root, step (inner) or leaf"),
    text=(pa.string(), "the step as the model wrote it, with its step boundary; empty for the root"),
    token_ids=(pa.list_(pa.int32()), "the step's token ids; null where the generator gives none"),
    answer=(pa.string(), "leaf: the letter that was read from it; null if unreadable"),
    outcome=(pa.float32(), "leaf: outcome o, +1 if its answer is the gold letter, else -1; NaN for other steps"),
    stop=(pa.string(), "leaf: why it ended: answer, unreadable, depth, tokens, empty or repeat; null for other steps"),
    weight=(pa.int32(), "number of identical sibling steps that were merged into this row"),
    n_tokens=(pa.int32(), "number of tokens of the step"),
    logprob=(pa.float32(), "sum of its tokens' log-probabilities, in nats"),
)

SCREENING = _schema(
    question_id=(pa.string(), "the question"),
    chains=(pa.int32(), "whole chains sampled to decide whether the question gets a tree"),
    right=(pa.int32(), "number of them that end at the gold letter"),
)

VALUES = _schema(
    question_id=(pa.string(), "the tree's question"),
    node_id=(pa.int32(), "the step"),
    right=(pa.float64(), "C: weighted number of right leaves at or below the step"),
    wrong=(pa.float64(), "W: weighted number of wrong leaves at or below the step"),
    value=(pa.float64(), "step value V = (C - W) / (C + W)"),
)

_JUDGEMENT = pa.struct(
    [("prompt", pa.string()), ("reply", pa.string()), ("correctness", pa.int8()), ("logic", pa.int8())]
)

PAIRS = _schema(
    pair_id=(pa.string(), "hash of kind, prompt, chosen and rejected"),
    question_id=(pa.string(), "the question both sides answer"),
    kind=(pa.string(), "reasoning, reflection_mid, reflection_post, reflection_keep or random_cot"),
    prompt=(_MESSAGES, "chat messages; the last one is the user's turn"),
    chosen=(_MESSAGES, "one assistant message"),
    rejected=(_MESSAGES, "one assistant message"),
    chosen_nodes=(pa.list_(pa.int32()), "node ids of the chosen path, from the root's child to the leaf"),
    rejected_nodes=(pa.list_(pa.int32()), "node ids of the rejected path"),
    chosen_value=(pa.float64(), "solution value S of the chosen path"),
    rejected_value=(pa.float64(), "solution value S of the rejected path"),
    left_nodes=(
        pa.list_(pa.int32()),
        "reflection: node ids of the path that both sides begin with, up to where a side leaves it",
    ),
    chosen_taken=(pa.int32(), "reflection: the step of chosen_nodes at which the chosen side continues"),
    rejected_taken=(pa.int32(), "reflection: the step of rejected_nodes at which the rejected side continues"),
    chosen_action=(pa.float64(), "reflection: action value A of the chosen side's correction"),
    rejected_action=(pa.float64(), "reflection: action value A of the rejected side's correction"),
    chosen_reflection=(pa.string(), "reflection: the text of the chosen side's reflection, as the model wrote it"),
    rejected_reflection=(pa.string(), "reflection: the text of the rejected side's reflection"),
    judgement=(
        _JUDGEMENT,
        "chosen side: the judge's prompt, raw reply and scores from 1 to 5; null without a judge",
    ),
    prompt_tokens=(
        pa.int32(),
        "tokens of the prompt in the trained model's chat template, with the header of its turn",
    ),
    chosen_tokens=(pa.int32(), "tokens of the chosen side with the trained model's tokenizer, without the prompt"),
    rejected_tokens=(pa.int32(), "tokens of the rejected side, counted in the same way"),
)

REFLECTIONS = _schema(
    question_id=(pa.string(), "the question"),
    left=(pa.int32(), "the step after which the correction leaves the wrong path"),
    leaf=(pa.int32(), "the leaf of the path that the correction continues on"),
    prompt=(pa.string(), "the prompt to the model that writes reflections"),
    replies=(pa.list_(pa.string()), "its raw replies, one per attempt"),
    faults=(pa.list_(pa.string()), "the reason for refusing each refused attempt"),
    text=(pa.string(), "the accepted reflection on one line; null where every attempt was refused"),
)

OVERLAPS = _schema(
    question_id=(pa.string(), "the training question"),
    other_id=(pa.string(), "the evaluation question"),
    other_source=(pa.string(), "the evaluation question's benchmark"),
    how=(pa.string(), "how they overlap: same (after normalization), contained or reworded"),
    jaccard=(pa.float64(), "Jaccard similarity of their word n-grams"),
    containment=(pa.float64(), "share of the shorter question's word n-grams that the other contains"),
)

TRAINING = _schema(
    step=(pa.int32(), "optimizer step, from 1"),
    loss=(pa.float64(), "mean DPO loss of the step's pairs; ln 2 while the adapter equals the reference"),
    margin=(pa.float64(), "mean reward margin: chosen minus rejected"),
    accuracy=(pa.float64(), "reward accuracy: share of pairs with a positive margin"),
    chosen_logprob=(pa.float64(), "mean log-probability of the chosen responses, nats per response"),
    rejected_logprob=(pa.float64(), "mean log-probability of the rejected responses, nats per response"),
    chosen_reward=(
        pa.float64(),
        "mean reward of the chosen responses: beta times their log-probability ratio to the reference",
    ),
    end_logprob=(
        pa.float64(),
        "mean log-probability of the end-of-turn token after the chosen responses, nats; may be NaN",
    ),
    grad_norm=(pa.float64(), "gradient norm before clipping"),
    learning_rate=(pa.float64(), "learning rate of the step"),
    held_out_loss=(pa.float64(), "mean DPO loss of the held-out pairs after the step; NaN where it was not measured"),
    held_out_margin=(pa.float64(), "mean reward margin of the held-out pairs"),
    held_out_accuracy=(pa.float64(), "reward accuracy of the held-out pairs"),
)

SFT_TRAINING = _schema(
    step=(pa.int32(), "optimizer step, from 1"),
    loss=(pa.float64(), "mean cross-entropy of the step's response tokens, nats per token"),
    accuracy=(pa.float64(), "token accuracy: share of the response tokens that the model ranks first"),
    entropy=(pa.float64(), "mean entropy of the model's next token on the responses, nats"),
    grad_norm=(pa.float64(), "gradient norm before clipping"),
    learning_rate=(pa.float64(), "learning rate of the step"),
    held_out_loss=(pa.float64(), "loss of the held-out chains after the step; NaN where it was not measured"),
    held_out_accuracy=(pa.float64(), "token accuracy of the held-out chains"),
)

REFERENCES = _schema(
    pair=(pa.string(), "hash of the pair's token ids"),
    chosen=(pa.float64(), "log-probability of the chosen response under the base, nats"),
    rejected=(pa.float64(), "log-probability of the rejected response under the base, nats"),
)

RESPONSES = _schema(
    question_id=(pa.string(), "the question answered"),
    stem_id=(pa.string(), "hash of the stem: questions with the same stem are one cluster in every interval"),
    content=(pa.string(), "hash of the stem and the options in any order: ties the response to its question"),
    stem=(pa.string(), "the question's text, without its options"),
    options=(pa.map_(pa.string(), pa.string()), "letter -> text, as shown to the model"),
    source=(pa.string(), "the benchmark"),
    model=(pa.string(), "base or medrefl (base + adapter)"),
    protocol=(pa.string(), "name of the protocol, one of evaluation.PROTOCOLS"),
    run=(pa.int32(), "repetition, from 0"),
    response=(pa.string(), "the whole response"),
    answer=(pa.string(), "the letter that was read from it; null if unreadable"),
    rule=(pa.string(), "name of the rule that read the answer"),
    stated_letter=(pa.string(), "the letter as written; null where there is none"),
    conflict=(pa.bool_(), "the stated letter belongs to another option than the stated text; the text counts"),
    gold=(pa.string(), "the gold letter"),
    correct=(pa.bool_(), "answer equals gold; an unreadable answer is wrong"),
    judged=(pa.string(), "the letter that a judge model read where the rules read none; null without a judge"),
    n_tokens=(pa.int32(), "number of tokens written"),
    stop=(
        pa.string(),
        "end (the model closed its turn), length (token limit), forced (thinking truncated, answer requested) or "
        "refused (by a server, whose words are the response; left out before scoring)",
    ),
    seconds=(pa.float64(), "its share of the wall-clock time of the run's responses"),
    temperature=(pa.float64(), "temperature of this run"),
    top_p=(pa.float64(), "top-p of this run"),
)

SCORES = _schema(
    source=(pa.string(), "the benchmark"),
    protocol=(pa.string(), "name of the protocol, one of evaluation.PROTOCOLS"),
    model=(pa.string(), "base or medrefl"),
    n=(pa.int32(), "distinct questions"),
    clusters=(pa.int32(), "distinct stems: the unit that the bootstrap resamples"),
    runs=(pa.int32(), "responses per question"),
    accuracy=(pa.float64(), "strict accuracy: unreadable answers are wrong; each distinct question counts once"),
    accuracy_low=(pa.float64(), "95% interval, bootstrap over stems"),
    accuracy_high=(pa.float64(), "95% interval, bootstrap over stems"),
    accuracy_published=(pa.float64(), "accuracy as published: unreadable answers are left out of the denominator"),
    accuracy_judged=(
        pa.float64(),
        "strict accuracy with the judge's letter where the rules read none; null without a judge",
    ),
    unreadable=(pa.float64(), "share of responses without a readable answer"),
    conflict=(pa.float64(), "share of responses whose stated letter and text are different options"),
    mean_tokens=(pa.float64(), "mean tokens per response"),
    mean_tokens_right=(pa.float64(), "mean tokens of right responses"),
    mean_tokens_wrong=(pa.float64(), "mean tokens of wrong responses"),
    tokens=(pa.int64(), "tokens of all responses together"),
    seconds=(pa.float64(), "wall-clock seconds of all responses"),
    gain=(pa.float64(), "accuracy minus the base's, paired; null for the base"),
    gain_low=(pa.float64(), "95% interval of the gain, paired bootstrap over stems"),
    gain_high=(pa.float64(), "95% interval of the gain, paired bootstrap over stems"),
    detectable=(pa.float64(), "smallest gain that this number of questions detects at the 5% level with 80% power"),
    fixed=(pa.int32(), "responses wrong with the base and right with the adapter"),
    broken=(pa.int32(), "responses right with the base and wrong with the adapter"),
    mcnemar_p=(pa.float64(), "exact McNemar test of the first run, two-sided; null for the base"),
    mcnemar_runs=(pa.list_(pa.float64()), "the same test for each run; null for the base"),
    holm_p=(
        pa.float64(),
        "mcnemar_p with Holm's correction over the benchmarks of the same protocol; null for the base",
    ),
)

PASS_AT_K = _schema(
    source=(pa.string(), "the benchmark"),
    model=(pa.string(), "base or medrefl"),
    k=(pa.int32(), "number of samples of which at least one must be right"),
    n=(pa.int32(), "distinct questions"),
    samples=(pa.int32(), "samples per question of the protocol sampled, from which pass@k is estimated"),
    share=(pa.float64(), "pass@k, unbiased estimate, mean over the questions"),
    low=(pa.float64(), "95% interval, bootstrap over stems"),
    high=(pa.float64(), "95% interval, bootstrap over stems"),
    difference=(pa.float64(), "paired difference to the base; null for the base"),
    difference_low=(pa.float64(), "95% interval of the difference"),
    difference_high=(pa.float64(), "95% interval of the difference"),
)

ROBUSTNESS = _schema(
    source=(pa.string(), "the benchmark"),
    model=(pa.string(), "base or medrefl"),
    protocol=(pa.string(), "what is changed: misled, shuffled or none-of-the-others"),
    n=(pa.int32(), "distinct questions"),
    accuracy_greedy=(pa.float64(), "strict accuracy on the unchanged questions, greedy"),
    accuracy=(pa.float64(), "strict accuracy on the changed questions, greedy"),
    difference=(pa.float64(), "the latter minus the former, paired"),
    difference_low=(pa.float64(), "95% interval, bootstrap over stems"),
    difference_high=(pa.float64(), "95% interval, bootstrap over stems"),
    changed=(pa.float64(), "share of questions for which another option is chosen, or an option instead of none"),
    changed_low=(pa.float64(), "95% interval, bootstrap over stems"),
    changed_high=(pa.float64(), "95% interval, bootstrap over stems"),
    followed_greedy=(pa.float64(), "misled: share of unchanged questions answered with the suggested wrong letter"),
    followed=(pa.float64(), "misled: the same share of the changed questions; null for the other changes"),
)

CONTINUATIONS = _schema(
    question_id=(pa.string(), "the question"),
    behind=(pa.string(), "where the continuation starts: after a wrong step, a wrong answer or a right answer"),
    nodes=(pa.list_(pa.int32()), "node ids of the prefix in its tree"),
    prefix=(pa.string(), "text of the prefix"),
    before=(pa.string(), "the answer of the path that the prefix was taken from"),
    wrong_share=(pa.float64(), "share of wrong answers in the base's trees: the weight in net self-correction"),
    model=(pa.string(), "base, medrefl or an arm of the ablation"),
    run=(pa.int32(), "repetition, from 0"),
    sample=(pa.int32(), "number of the continuation of this prefix in this run, from 0"),
    gold=(pa.string(), "the gold letter"),
    text=(pa.string(), "the continuation; after an answer, 'Wait,' is already part of the prompt"),
    answer=(
        pa.string(),
        "the final letter: that of the continuation, else that of the prefix; null if neither is readable",
    ),
    reconsiders=(pa.bool_(), "the text states that it reconsiders; after an answer, the prompt forces it"),
    n_tokens=(pa.int32(), "number of tokens written"),
    stop=(pa.string(), "end (the model closed its turn) or length (token limit)"),
)

SELF_CORRECTION = _schema(
    model=(pa.string(), "base, medrefl or an arm of the ablation"),
    figure=(pa.string(), "name of the figure: see evaluation.correction_rates.self_correction_rates"),
    n=(pa.int32(), "number of texts"),
    share=(pa.float64(), "share of the texts, or net self-correction; null without texts"),
    low=(pa.float64(), "95% interval, bootstrap over questions"),
    high=(pa.float64(), "95% interval, bootstrap over questions"),
    difference=(pa.float64(), "paired difference to the base; null for the base"),
    difference_low=(pa.float64(), "95% interval of the difference"),
    difference_high=(pa.float64(), "95% interval of the difference"),
)

ABLATION = _schema(
    arm=(pa.string(), "name of the arm: base, or the kinds of pairs that the adapter was trained on"),
    protocol=(pa.string(), "as in the table of scores; null for an arm that is left out"),
    n_pairs=(pa.int32(), "training pairs of each adapter; 0 for the base and an arm that is left out"),
    left_out=(pa.string(), "why the arm was not trained; null for all others, and its other columns are null"),
    n=(pa.int32(), "distinct questions"),
    runs=(pa.int32(), "number of seeds; a seed sets pairs, adapter and sampling"),
    accuracy=(pa.float64(), "strict accuracy, mean over the seeds"),
    accuracy_low=(pa.float64(), "95% interval over questions and adapters"),
    accuracy_high=(pa.float64(), "95% interval over questions and adapters"),
    gain=(pa.float64(), "accuracy minus the base's, paired; null for the base"),
    gain_low=(pa.float64(), "95% interval of the gain, over questions and adapters"),
    gain_high=(pa.float64(), "95% interval of the gain, over questions and adapters"),
    gains=(pa.list_(pa.float64()), "gain of each seed"),
    **{
        f"{name}{end}": (pa.float64(), f"{text}{', 95% interval over questions and adapters' if end else ''}")
        for name, text in (
            ("net", "net self-correction: share wrong x mends - share right x breaks"),
            ("mends", "wrong to right: share of continuations after a wrong answer and 'Wait,' that correct it"),
            ("breaks", "right to wrong: share of continuations after a right answer and 'Wait,' that make it wrong"),
            ("fake", "fake reflection rate: share of continuations after a wrong answer and 'Wait,' that keep it"),
            ("repair", "repair rate: share of continuations after a wrong step that reach the gold answer"),
        )
        for end in ("", "_low", "_high")
    },
)

CONTRASTS = _schema(
    figure=(pa.string(), "what is compared: accuracy with its protocol, or a figure of self-correction"),
    arm=(pa.string(), "the one arm of the ablation"),
    against=(pa.string(), "the other: base, or another arm"),
    n=(pa.int32(), "distinct questions"),
    runs=(pa.int32(), "adapters of each arm, one per seed"),
    difference=(pa.float64(), "arm minus against, paired by question and seed"),
    low=(pa.float64(), "95% interval, hierarchical bootstrap over adapters and questions"),
    high=(pa.float64(), "95% interval, hierarchical bootstrap over adapters and questions"),
    p=(pa.float64(), "two-sided p-value of the same bootstrap"),
    holm_p=(pa.float64(), "p with Holm's correction: over the arms, or over the pairs of arms, of the same figure"),
    detectable=(pa.float64(), "smallest difference that the measured variance detects with 80% power at the 5% level"),
)

_ENTITY = pa.struct(
    [
        ("side", pa.string()),
        ("text", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("type", pa.string()),
        ("id", pa.string()),
        ("name", pa.string()),
        ("rule", pa.string()),
        ("score", pa.float64()),
        ("negated", pa.bool_()),
    ]
)

CHAINS = _schema(
    question_id=(pa.string(), "the question; every question asked for has one row"),
    source=(pa.string(), "the question's source: a benchmark's name, a file or a hub id"),
    gold=(pa.string(), "the gold letter"),
    entities=(
        pa.list_(_ENTITY),
        "linked entities: side (question, or the letter of an option), text with its place in stem or option, and node",
    ),
    pairs=(pa.int32(), "pairs of a question entity and an answer entity"),
    connected=(pa.int32(), "pairs with a path within the limits"),
    n_paths=(pa.int32(), "shortest paths of all pairs, before the choice"),
    paths=(pa.list_(pa.string()), "the chosen paths as text, with all their relations"),
    writer_prompt=(pa.string(), "the prompt to the model that writes chains; null where a rule writes"),
    replies=(pa.list_(pa.string()), "its raw replies, one per attempt"),
    faults=(pa.list_(pa.string()), "the reason for refusing each refused attempt"),
    named_early=(pa.bool_(), "the first attempt names the answer before its conclusion; null without a chain"),
    chain=(pa.string(), "the reasoning, one step per line, without its conclusion; null where there is none"),
    conclusion=(pa.string(), "the conclusion, which the filter cuts off"),
    n_steps=(pa.int32(), "number of steps of the chain"),
    support=(pa.list_(pa.string()), "for each step what the graph says: supported, contradicted or unknown"),
    supported=(pa.int32(), "number of supported steps"),
    contradicted=(pa.int32(), "number of contradicted steps"),
    unknown=(pa.int32(), "number of steps that the graph does not know"),
    pass_with=(pa.float64(), "share of the filter's answers that are right after the chain; NaN without a filter"),
    pass_without=(pa.float64(), "the same without a chain"),
    pass_other=(pa.float64(), "the same after another question's chain"),
    kept=(pa.bool_(), "the chain is a row of the training data"),
    reason=(pa.string(), "why it is not; null for a kept chain"),
    prompt=(_MESSAGES, "chat messages that ask the question, as training and evaluation do"),
    completion=(
        _MESSAGES,
        "one assistant message: the chain and its conclusion in the chosen format; null without one",
    ),
)

TAUGHT = pa.schema(
    [CHAINS.field(name) for name in ("question_id", "source", "gold", "kept", "reason", "prompt", "completion")]
)
"""The columns of CHAINS that fine-tuning reads."""

ASKED = pa.schema([CHAINS.field(name) for name in ("question_id", "prompt")])
"""The questions that a model was trained on, as their prompts (``training.taught``)."""


def describe(schema: pa.Schema) -> str:
    """Return the columns of a table, one line each: name, type, meaning."""
    return "\n".join(f"{f.name}: {f.type} - {f.metadata[b'doc'].decode()}" for f in schema)
