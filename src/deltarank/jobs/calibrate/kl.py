"""The KL divergence between two models' predictions, and its gradient, without an autograd graph of the logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from deltarank.models import Head


def kl_divergence(teacher: Tensor, teacher_head: Head, student: Tensor, student_head: Head) -> float:
    """sum over tokens of KL(P || Q), in nats.

    With d = log q - log p the divergence of a token is sum p (e^d - 1 - d), of which no term is negative. Vocabularies
    of different lengths are compared on the tokens that both have.

    Args:
        teacher, student: (tokens, hidden), the inputs of each output head; logits where a head has no weight.
    """
    common = common_tokens(teacher, teacher_head, student, student_head)
    return sum(
        _divergence(teacher_head.logits(teacher[rows])[..., :common], student_head.logits(student[rows])[..., :common])
        for rows in _chunks(len(student), teacher_head, student_head)
    )


def _divergence(p_logits: Tensor, q_logits: Tensor) -> float:
    log_p, log_q = (torch.log_softmax(logits, -1) for logits in (p_logits, q_logits))
    difference = log_q.sub_(log_p)
    return float(log_p.exp_().mul_(torch.expm1(difference).sub_(difference)).sum(-1).double().sum())


def kl_gradient(expected: Tensor, student: Tensor, student_head: Head, common: int) -> Tensor:
    """The gradient of the divergence, summed over tokens, with respect to `student`, in its shape.

    With respect to the student's logits it is q - p. With respect to the inputs of its head it is therefore
    (q - p) W = sum q_j W_j - sum p_j W_j. The second sum does not depend on the student, so it is computed once.

    Args:
        expected: sum p_j W_j, the `expected_weights` of the teacher.
    """
    gradient = torch.zeros_like(student, dtype=torch.float32)
    mean = expected_weights(student, student_head, student_head, common)
    gradient[..., : mean.shape[-1]] = mean.sub_(expected)
    return gradient


def expected_weights(inputs: Tensor, head: Head, student_head: Head, common: int) -> Tensor:
    """sum p_j W_j for each token, with a model's prediction p and the rows W_j of the student's head: (tokens, hidden).

    It is p itself, (tokens, common), where the student's head has no weight.

    Args:
        common: see `common_tokens`. Tokens beyond are left out of the distribution.
    """
    chunks = (inputs[rows] for rows in _chunks(len(inputs), head, student_head))
    predictions = (torch.softmax(head.logits(chunk)[..., :common], -1) for chunk in chunks)
    return torch.cat([student_head.sum_rows(each) for each in predictions])


def common_tokens(teacher: Tensor, teacher_head: Head, student: Tensor, student_head: Head) -> int:
    """How many tokens both vocabularies have. Arguments as for `kl_divergence`."""
    sides = ((teacher, teacher_head), (student, student_head))
    return min(inputs.shape[-1] if head.weight is None else len(head.weight) for inputs, head in sides)


def _chunks(tokens: int, *heads: Head) -> Iterator[slice]:
    step = min(head.tokens_per_chunk for head in heads)
    return (slice(start, start + step) for start in range(0, tokens, step))
