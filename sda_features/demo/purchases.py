"""Purchases of generated users, decided by the factors of the catalogue.

At each step user u, who has bought n items, picks item i with probability softmax_i of

    sum_f (a_uf + d_unf)[level_f(i)] + s[kind of the last item, kind(i)] + b_i

over the items that are on sale at that time and that u does not own yet. a_uf is the user's lasting
preference over the levels of factor f, d_unf a random walk that makes tastes drift, s says which kind
tends to follow which, and b_i is the item's popularity, normal in logits, so a long tail in counts.
Some items are new: they go on sale in the last days of the log, and few users have bought them.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sda_features.demo.catalogue import Catalogue
from sda_features.demo.factors import FACTORS
from sda_features.errors import SettingsError

SHORTEST, LONGEST = 3, 5  # events of a user: most customers of a shop have taken a few things
LOG_END = datetime(2025, 12, 31, tzinfo=UTC)
EVENT_GAP, LAST_GAP = 10.0, 9.0  # mean days between a user's events, and from the last one to the log's end
NEW_SHARE, NEW_DAYS = 0.25, 28.0  # share of items that go on sale in the last days
POPULARITY_SPREAD = 1.2  # standard deviation of b_i
DRIFT = 0.15  # standard deviation of one step of the walk, relative to a factor's weight
FOLLOW_BONUS = 1.5  # s of the two kinds that tend to follow a kind
SCHEMA = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.timestamp("us", tz="UTC"))]
)


def make_interactions(catalogue: Catalogue, users: int = 5000, *, seed: int = 0) -> pa.Table:
    """Generate the log of a shop.

    Args:
        catalogue: the products; needs more than `LONGEST` of them that are not new.
        users: number of users, each with 3 to 5 events and no item twice.
        seed: decides everything.

    Returns:
        user_id, item_id (string), timestamp (UTC, microseconds), ordered by time; no two events
        of one user share a time.

    Raises:
        SettingsError: no user, or too few items.
    """
    items = len(catalogue.item_ids)
    if users < 1 or items * (1 - NEW_SHARE) <= LONGEST:
        raise SettingsError(
            f"A demo log needs at least one user and {int(LONGEST / (1 - NEW_SHARE)) + 1} items, "
            f"got {users} and {items}."
        )
    rng = np.random.default_rng([seed, 2])
    days = _event_days(users, rng)  # [users, LONGEST], NaN where a user has no event
    chosen = _choose(catalogue.factors, days, rng)
    user, step = np.nonzero(~np.isnan(days))
    order = np.argsort(days[user, step], kind="stable")
    user, step = user[order], step[order]
    microseconds = (days[user, step] * 86_400e6).astype(np.int64) + int(LOG_END.timestamp()) * 1_000_000
    return pa.Table.from_arrays(
        [
            pa.array([f"user-{number:05d}" for number in user]),
            pa.array(np.array(catalogue.item_ids)[chosen[user, step]]),
            pa.array(microseconds).cast(SCHEMA.field("timestamp").type),
        ],
        schema=SCHEMA,
    )


def _event_days(users: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Days relative to the log's end, negative, rising along each row: float64 [users, LONGEST]."""
    counts = rng.integers(SHORTEST, LONGEST + 1, users)
    gaps = 0.01 + rng.exponential(EVENT_GAP, (users, LONGEST))
    gaps[:, -1] = rng.exponential(LAST_GAP, users)
    days = -np.cumsum(gaps[:, ::-1], axis=1)[:, ::-1]
    days[np.arange(LONGEST) < LONGEST - counts[:, None]] = np.nan
    return days


def _choose(
    factors: NDArray[np.int64], days: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Item of each event: int64 [users, LONGEST], undefined where `days` is NaN."""
    users, items = len(days), len(factors)
    on_sale = np.full(items, -np.inf)
    new = rng.random(items) < NEW_SHARE
    on_sale[new] = -rng.uniform(0, NEW_DAYS, new.sum())
    popularity = rng.normal(0, POPULARITY_SPREAD, items)
    follow = _follow_bonus(rng)[:, factors[:, 0]]  # [kinds, items]
    tastes = [rng.normal(0, factor.weight, (users, len(factor.levels))) for factor in FACTORS]

    owned = np.zeros((users, items), bool)
    chosen = np.zeros((users, days.shape[1]), np.int64)
    for step in range(days.shape[1]):
        logits = popularity + rng.gumbel(size=(users, items))  # the largest is a draw from the softmax
        for taste, levels in zip(tastes, factors.T, strict=True):
            logits += taste[:, levels]
        if step:
            started = ~np.isnan(days[:, step - 1])
            logits[started] += follow[factors[chosen[started, step - 1], 0]]
        active = np.flatnonzero(~np.isnan(days[:, step]))
        logits[owned | (on_sale > days[:, step, None])] = -np.inf
        chosen[:, step] = logits.argmax(axis=1)
        owned[active, chosen[active, step]] = True
        for taste, factor in zip(tastes, FACTORS, strict=True):
            taste += rng.normal(0, DRIFT * factor.weight, taste.shape)
            taste /= np.sqrt(1 + DRIFT**2)
    return chosen


def _follow_bonus(rng: np.random.Generator) -> NDArray[np.float64]:
    """Which kinds tend to follow which: float64 [kinds, kinds], two entries a row."""
    kinds = len(FACTORS[0].levels)
    bonus = np.zeros((kinds, kinds))
    cycle = rng.permutation(kinds)
    for hop in (1, 2):
        bonus[cycle, np.roll(cycle, -hop)] = FOLLOW_BONUS
    return bonus
