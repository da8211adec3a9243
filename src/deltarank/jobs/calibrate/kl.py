"""The KL divergence between two models' predictions, and its gradient, without an autograd graph of the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from deltarank.models import Head


def kl_and_gradient(teacher: Tensor, teacher_head: Head, student: Tensor, student_head: Head) -> tuple[float, Tensor]:
    """sum over tokens of KL(P || Q), and its gradient with respect to the student's head inputs.

    With d = log q - log p the divergence of a token is sum p (e^d - 1 - d), of which no term is negative. Its gradient
    with respect to the student's logits is q - p, so with respect to the inputs of the head it is (q - p) W.
    Vocabularies of different lengths are compared on the tokens that both have.

    Args:
        teacher, student: (tokens, hidden), the inputs of each output head; logits where a head has no weight.

    Returns:
        nats, and the gradient in the shape of `student`.
    """
    gradient = torch.empty_like(student, dtype=torch.float32)
    total = 0.0
    step = min(teacher_head.tokens_per_chunk, student_head.tokens_per_chunk)
    for start in range(0, len(student), step):
        rows = slice(start, start + step)
        nats, gradient[rows] = _chunk(teacher[rows], teacher_head, student[rows], student_head)
        total += nats
    return total, gradient


def _chunk(teacher: Tensor, teacher_head: Head, student: Tensor, student_head: Head) -> tuple[float, Tensor]:
    p_logits, q_logits = teacher_head.logits(teacher), student_head.logits(student)
    common = min(p_logits.shape[-1], q_logits.shape[-1])
    log_p = torch.log_softmax(p_logits[..., :common], -1)
    log_q = torch.log_softmax(q_logits[..., :common], -1)
    p, difference = log_p.exp(), log_q - log_p
    nats = float((p * (torch.expm1(difference) - difference)).sum(-1).double().sum())
    slope = log_q.exp_().sub_(p)
    if student_head.weight is None:
        full = torch.zeros_like(q_logits)
        full[..., :common] = slope
        return nats, full
    return nats, slope @ student_head.weight[:common].float()
