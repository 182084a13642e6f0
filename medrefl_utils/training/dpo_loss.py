"""The sigmoid DPO loss (Rafailov et al. 2023, equation 7), with which Med-REFL trains."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def sigmoid_dpo_loss(
    chosen_logratios: torch.Tensor, rejected_logratios: torch.Tensor, *, beta: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute -log sigmoid(beta * (chosen - rejected)), averaged over the pairs.

    Args:
        chosen_logratios: [pairs], log-probability of the chosen response under the policy minus under the reference,
            in nats, summed over its tokens.
        rejected_logratios: [pairs], the same of the rejected response.
        beta: KL penalty strength (published: 0.1).

    Returns:
        The mean loss [], and the rewards [pairs] of the chosen and of the rejected responses: beta times the
        log-ratio. At the start of training all log-ratios are 0 and the loss is ln 2.

    The loss equals that of TRL's ``DPOTrainer`` with ``loss_type="sigmoid"`` (a test compares losses and gradients).
    """
    loss = -logsigmoid(beta * (chosen_logratios - rejected_logratios)).mean()
    return loss, beta * chosen_logratios, beta * rejected_logratios
