"""Contrastive losses over logits and boolean positives [B, 1+K]. InfoNCE is cross-entropy, label 0."""

import torch
from torch import Tensor


def supcon_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """UberNCE: mean over the batch of -(sum of log-softmax over positives) / (number of positives).

    Supervised contrastive loss, Khosla et al. 2020 (arXiv 2004.11362), L_out. Every row needs a positive.
    """
    log_prob = logits.log_softmax(dim=1)
    return -((log_prob * positives).sum(dim=1) / positives.sum(dim=1)).mean()


def mil_nce_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """CoCLR: mean over the batch of -log(sum of softmax over positives). Every row needs a positive.

    Computed as a difference of two log-sum-exps: the log of a sum of softmax values underflows for rows whose
    positives are all far away (MIL-NCE, Miech et al. 2020, arXiv 1912.06430).
    """
    positive_logits = logits.masked_fill(~positives, -torch.inf)
    return (logits.logsumexp(dim=1) - positive_logits.logsumexp(dim=1)).mean()


def hide_self_positive(positives: Tensor) -> Tensor:
    """Take column 0 out of the positives of every row that has another positive; [B, 1+K] bool -> the same.

    The sample's own second view stays in the denominator (original thread 43).
    """
    hidden = positives.clone()
    hidden[:, 0] = positives.sum(dim=1) == 1
    return hidden
