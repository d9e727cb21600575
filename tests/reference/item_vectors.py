"""Slow twins of evaluation/item_vectors.py: loops over users, pairs and candidates."""

import math
from itertools import pairwise, product

from tests.reference.metrics import rank_of_target


def session_pairs(log, held, window):
    found = set()
    for user, (start, end) in enumerate(pairwise(log.offsets.tolist())):
        for a, b in product(range(start, end), repeat=2):
            together = str(log.times[a])[:10] == str(log.times[b])[:10]
            if together and 0 < abs(a - b) <= window and log.items[a] != log.items[b] and held[b]:
                found.add((user, int(log.items[a]), int(log.items[b])))
    return found


def next_pairs(log, held):
    found = set()
    for user, (start, end) in enumerate(pairwise(log.offsets.tolist())):
        for a, b in pairwise(range(start, end)):
            if held[b] and log.items[a] != log.items[b]:
                found.add((user, int(log.items[a]), int(log.items[b])))
    return found


def cosine(a, b):
    product = sum(x * y for x, y in zip(a, b, strict=True))
    norms = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return product / norms if norms else 0.0


def rank(units, state, target, others):
    """Of the target among others; ties, which rounding may hide, at their middle."""
    scores = [cosine(state, units[item]) if any(units[item]) else -2.0 for item in (target, *others)]
    return rank_of_target(scores, 0, tolerance=1e-6)


def pair_rank(units, query, target, products):
    """The query is a history of one item."""
    return next_rank(units, [query], target, 1, 1, products)


def next_rank(units, history, target, length, decay, products):
    state = [0.0] * len(units[0])
    for age, item in enumerate(reversed(history[-length:])):
        state = [x + decay**age * y for x, y in zip(state, units[item], strict=True)]
    taken = {products[item] for item in history} if products is not None else set()
    others = [
        item
        for item in range(1, len(units))
        if item not in (target, *history) and (products is None or products[item] not in taken)
    ]
    return rank(units, state, target, others)
