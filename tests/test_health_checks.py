"""What a training's log tells: each finding where it is made to happen, and none in a good training."""

import math

import numpy as np
import pandas as pd
import pytest

from medrefl_utils.training import check_training_log
from medrefl_utils.training.health_checks import KINDS, PATIENCE


def make_log(n=40, **columns):
    """A training that goes well, with these columns instead."""
    t = np.arange(n)
    log = {
        "step": t + 1,
        "loss": 0.69 - 0.005 * t,
        "margin": 0.01 * t,
        "accuracy": np.full(n, 0.8),
        "chosen_logprob": -100.0 + 0.1 * t,
        "chosen_reward": 0.01 * t,
        "end_logprob": np.full(n, -0.1),
        "grad_norm": np.ones(n),
    }
    return pd.DataFrame(log | columns)


def kinds(log, **settings):
    return [finding.kind for finding in check_training_log(log, **({"beta": 0.1, "pairs_per_step": 16} | settings))]


def test_a_good_training_has_none():
    assert [kinds(make_log(n)) for n in (0, 1, 9, 10, 29, 30, 40, 400)] == [[]] * 8


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_counts_at_once(value):
    assert kinds(make_log(3, loss=[0.69, 0.68, value])) == ["not_finite"]


def test_a_gradient_counts_when_it_stays_infinite():
    # An fp16 loss scaler begins with a step or two that overflow, and skips them.
    assert kinds(make_log(4, grad_norm=[math.inf, math.inf, 1, 1])) == []
    assert kinds(make_log(4, grad_norm=[1, math.nan, math.inf, math.nan])) == ["not_finite"]


def test_a_margin_that_stays_at_0_counts_after_some_patience():
    flat = np.full(PATIENCE, 1e-5)
    assert kinds(make_log(PATIENCE, margin=flat)) == ["flat_margin"]
    assert kinds(make_log(PATIENCE - 1, margin=flat[1:])) == []
    assert kinds(make_log(PATIENCE, margin=flat), warmup_steps=10) == []  # it has hardly begun


def test_accuracy_at_chance_allows_for_the_number_of_pairs():
    at = np.full(40, 0.55)
    assert kinds(make_log(accuracy=at), pairs_per_step=4) == ["chance"]  # 40 pairs: 0.5 + 0.16
    assert kinds(make_log(accuracy=at), pairs_per_step=64) == []  # 640 pairs: 0.5 + 0.04


def test_chosen_responses_that_lose_half_their_probability():
    # Reference -100 nats; at beta 0.1 a reward of -6 is 60 nats lost.
    lost = np.full(12, 60.0)
    assert kinds(make_log(12, chosen_reward=-0.1 * lost, chosen_logprob=-100 - lost)) == ["collapse"]
    lost = np.full(12, 40.0)
    assert kinds(make_log(12, chosen_reward=-0.1 * lost, chosen_logprob=-100 - lost)) == []


def test_a_model_that_no_longer_ends_its_turn():
    ends = np.r_[np.full(20, math.log(0.9)), np.full(20, math.log(0.4))]
    assert kinds(make_log(end_logprob=ends)) == ["length"]
    assert kinds(make_log(end_logprob=ends[::-1])) == []
    assert kinds(make_log(end_logprob=np.full(40, np.nan))) == []  # TRL's own trainer does not tell


def test_a_finding_says_the_step_and_what_to_do():
    [finding] = check_training_log(make_log(3, loss=[1, 1, math.nan]), beta=0.1, pairs_per_step=16)
    assert finding.step == 3 and "lower learning_rate" in finding.line
    assert {"not_finite", "flat_margin", "chance", "collapse", "length"} == set(KINDS)
