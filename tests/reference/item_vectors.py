"""Slow twins of evaluation/item_vectors.py: loops over users, pairs and candidates."""

from __future__ import annotations

import math
from itertools import pairwise


def rows(log):
    """Items of each user, in order, and their times."""
    bounds = list(zip(log.offsets[:-1].tolist(), log.offsets[1:].tolist(), strict=True))
    return [list(range(start, end)) for start, end in bounds]


def session_pairs(log, held, window):
    found = set()
    for user, places in enumerate(rows(log)):
        for a in places:
            for b in places:
                together = str(log.times[a])[:10] == str(log.times[b])[:10]
                if together and 0 < abs(a - b) <= window and log.items[a] != log.items[b] and held[b]:
                    found.add((user, int(log.items[a]), int(log.items[b])))
    return found


def next_pairs(log, held):
    found = set()
    for user, places in enumerate(rows(log)):
        for a, b in pairwise(places):
            if held[b] and log.items[a] != log.items[b]:
                found.add((user, int(log.items[a]), int(log.items[b])))
    return found


def cosine(a, b):
    product = sum(x * y for x, y in zip(a, b, strict=True))
    norms = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return product / norms if norms else 0.0


def rank(scores, target):
    """Scores by item; ties at their middle."""
    mine = scores[target]
    better = sum(score > mine + 1e-6 for score in scores.values())
    ties = sum(abs(score - mine) <= 1e-6 for score in scores.values()) - 1
    return 1 + better + ties / 2


def pair_rank(units, query, target, products):
    candidates = [
        item
        for item in range(1, len(units))
        if item != query and (products is None or products[item] != products[query])
    ]
    return rank({item: _score(units, units[query], item) for item in candidates}, target)


def next_rank(units, history, target, length, decay, products):
    state = [0.0] * len(units[0])
    for age, item in enumerate(reversed(history[-length:])):
        state = [x + decay**age * y for x, y in zip(state, units[item], strict=True)]
    taken = {products[item] for item in history} if products is not None else set()
    candidates = [
        item
        for item in range(1, len(units))
        if item == target or (item not in history and (products is None or products[item] not in taken))
    ]
    return rank({item: _score(units, state, item) for item in candidates}, target)


def _score(units, state, item):
    return cosine(state, units[item]) if any(units[item]) else -2.0
