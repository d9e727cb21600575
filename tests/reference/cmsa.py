"""CMSA (Eq. 1-3) entry by entry, in Python floats. Slow; an oracle only."""

from __future__ import annotations

import math

Matrix = list[list[float]]


def _softmax(row: list[float]) -> list[float]:
    top = max(row)
    exponentials = [math.exp(value - top) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def _dot(left: list[float], right: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def cmsa(text: Matrix, image: Matrix, tau: float, teacher_scale: float, literal: bool) -> float:
    """L_CL for raw vectors; `literal` compares the second direction with columns of T."""
    n = len(text)
    s = [[_dot(text[i], image[j]) / tau for j in range(n)] for i in range(n)]
    t = [
        _softmax([teacher_scale * (_dot(text[i], text[j]) + _dot(image[i], image[j])) / 2 for j in range(n)])
        for i in range(n)
    ]
    p = [_softmax(row) for row in s]
    p_back = [_softmax([s[j][i] for j in range(n)]) for i in range(n)]
    total = 0.0
    for i in range(n):
        target_back = [t[j][i] for j in range(n)] if literal else t[i]
        total += sum(t[i][j] * (math.log(t[i][j]) - math.log(p[i][j])) for j in range(n))
        total += sum(target_back[j] * (math.log(target_back[j]) - math.log(p_back[i][j])) for j in range(n))
    return total / (2 * n)
