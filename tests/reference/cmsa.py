"""CMSA (Eq. 1-3) entry by entry, in Python floats. Slow; an oracle only."""

import math
from collections.abc import Sequence

Matrix = list[list[float]]


def _softmax(row: Sequence[float]) -> list[float]:
    top = max(row)
    exponentials = [math.exp(value - top) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def _dot(left: list[float], right: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def _divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """sum p (ln p - ln q)."""
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def teacher(text: Matrix, image: Matrix, temperature: float, text_weight: float = 0.5) -> Matrix:
    """T of Eq. 2 with weights and a divisor of its own."""
    rest = 1 - text_weight
    return [
        _softmax(
            [
                (text_weight * _dot(a, b) + rest * _dot(u, v)) / temperature
                for b, v in zip(text, image, strict=True)
            ]
        )
        for a, u in zip(text, image, strict=True)
    ]


def blend(rows: Matrix, self_weight: float, partners: list[list[bool]], weight: float) -> Matrix:
    """T with a share moved to the item itself, then a share to the partners of the items that have any."""
    blended = []
    for i, row in enumerate(rows):
        mixed = [(1 - self_weight) * value + (self_weight if j == i else 0) for j, value in enumerate(row)]
        if count := sum(partners[i]):
            mixed = [
                (1 - weight) * value + (weight / count if together else 0)
                for value, together in zip(mixed, partners[i], strict=True)
            ]
        blended.append(mixed)
    return blended


def kept(vectors: Matrix, base: Matrix, temperature: float) -> float:
    """Mean KL between the base model's relations of an item with all others and the vectors'."""
    n, total = len(vectors), 0.0
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        q = _softmax([_dot(base[i], base[j]) / temperature for j in rest])
        r = _softmax([_dot(vectors[i], vectors[j]) / temperature for j in rest])
        total += _divergence(q, r)
    return total / n


def cmsa(text: Matrix, image: Matrix, tau: float, t: Matrix, literal: bool) -> float:
    """L_CL for raw vectors and T; `literal` compares the second direction with columns of T."""
    scores = [[_dot(a, b) / tau for b in image] for a in text]
    backward = list(zip(*scores, strict=True))
    targets_back = list(zip(*t, strict=True)) if literal else t
    total = 0.0
    for i in range(len(text)):
        total += _divergence(t[i], _softmax(scores[i])) + _divergence(targets_back[i], _softmax(backward[i]))
    return total / (2 * len(text))
