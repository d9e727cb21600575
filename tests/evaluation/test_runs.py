import json
from itertools import product

import numpy as np
import pytest

from sda_features.errors import CheckpointError, SettingsError
from sda_features.evaluation.metrics import hit_at_k, ndcg_at_k
from sda_features.evaluation.runs import check_comparable, compare_runs, read_run, read_seeds
from sda_features.evaluation.significance import paired_t_test

USERS = 200


def write_run(folder, seed=0, shift=0, *, sha="a" * 64, users=USERS, tail=True, **settings):
    """A run folder as `TrainResult.save` writes it, as far as results go; `shift` worsens ranks."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    arrays = {
        "user_ids": np.array([f"u{n}" for n in range(users)]),
        "item_ids": np.array([f"i{n}" for n in range(users)]),
        "rank/full": random.integers(1, 40, users) + shift * 1.0,
        "rank/sampled-100": random.integers(1, 20, users) + shift * 1.0,
        "group/all": np.ones(users, bool),
        "group/tail": (np.arange(users) % 4 == 0) & tail,
    }
    np.savez(folder / "ranks.npz", **arrays)
    manifest = {
        "recommender": "SASRec",
        "metrics": {},
        "features": settings.pop("features", "id"),
        "data": {"sha256": sha},
        "evaluation": {"cutoff": 10, "negatives": 100, "seed": 0} | settings.pop("evaluation", {}),
        "settings": {"seed": seed, "threads": seed, "dropout": 0.5} | settings,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_runs_compare_user_by_user(tmp_path):
    ours, theirs = (read_run(write_run(tmp_path / str(shift), shift=shift)) for shift in (0, 3))
    found = {difference.metric: difference for difference in compare_runs([ours], [theirs])}
    metrics = {"hit": hit_at_k, "ndcg": ndcg_at_k}
    every = list(product(("full", "sampled-100"), ("all", "tail"), metrics))
    assert list(found) == [f"{name}@10/{protocol}/{group}" for protocol, group, name in every]
    for (protocol, group, name), difference in zip(every, found.values(), strict=True):
        members = ours.groups[group]
        a, b = (metrics[name](run.ranks[protocol][members], 10) for run in (ours, theirs))
        assert (difference.ours, difference.theirs) == pytest.approx((a.mean(), b.mean()))
        assert difference.comparison.users == members.sum()
        assert difference.comparison.difference == pytest.approx((a - b).mean())
        assert difference.comparison.t == pytest.approx(paired_t_test(a, b)[0])
    overall = found["ndcg@10/full/all"].comparison
    assert overall.p_value < 0.05
    assert 0 < overall.low < overall.difference < overall.high


def test_seeds_are_one_sample_of_users(tmp_path):
    """Three seeds of 200 users are 200 pairs, each the mean over seeds, not 600."""
    for seed in range(3):
        write_run(tmp_path / "ours" / f"seed-{seed}", seed)
        write_run(tmp_path / "theirs" / f"seed-{seed}", seed + 10)
    sides = [read_seeds(tmp_path / name) for name in ("ours", "theirs")]
    assert [len(runs) for runs in sides] == [3, 3]
    (found,) = (d for d in compare_runs(*sides) if d.metric == "ndcg@10/full/all")
    a, b = (np.mean([ndcg_at_k(run.ranks["full"], 10) for run in runs], axis=0) for runs in sides)
    assert found.comparison.users == USERS
    assert (found.comparison.t, found.comparison.p_value) == pytest.approx(paired_t_test(a, b))
    assert found.ours == pytest.approx(a.mean())
    means = [[ndcg_at_k(run.ranks["full"], 10).mean() for run in runs] for runs in sides]
    assert (found.won, found.pairs) == (sum(x > y for x in means[0] for y in means[1]), 9)
    assert 0 < found.won < 9, "vacuous"
    assert len(read_seeds(tmp_path / "ours" / "seed-1")) == 1


def test_a_group_without_users_has_no_numbers(tmp_path):
    runs = [read_run(write_run(tmp_path / str(seed), seed, tail=False)) for seed in (0, 1)]
    (found,) = (d for d in compare_runs(runs[:1], runs[1:]) if d.metric == "hit@10/full/tail")
    assert (found.ours, found.theirs, found.comparison.users) == (None, None, 0)
    assert (found.comparison.difference, found.comparison.p_value, found.pairs) == (None, None, 0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"sha": "b" * 64}, r"data: 'aaaaaaaaaaaa' and 'bbbbbbbbbbbb'"),
        ({"evaluation": {"negatives": 99}}, r"negatives: 100 and 99"),
        ({"evaluation": {"seed": 1, "cutoff": 5}}, r"cutoff: 10 and 5; seed: 0 and 1"),
        ({"users": 100}, "other users or targets were evaluated"),
    ],
)
def test_runs_of_other_data_or_protocol_are_refused(tmp_path, other, message):
    runs = [read_run(write_run(tmp_path / "a")), read_run(write_run(tmp_path / "b", **other))]
    with pytest.raises(SettingsError, match=rf"cannot be compared: {message}"):
        compare_runs(runs[:1], runs[1:])
    check_comparable(runs[:1] * 2)


@pytest.mark.parametrize("change", [{"dropout": 0.2}, {"features": "sda"}])
def test_a_folder_of_different_settings_is_no_set_of_seeds(tmp_path, change):
    write_run(tmp_path / "runs" / "a", 0)
    write_run(tmp_path / "runs" / "b", 1, **change)
    with pytest.raises(
        SettingsError, match="2 runs in .* are not seeds of one setting; name one of them: a, b"
    ):
        read_seeds(tmp_path / "runs")


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="Expected a run folder with manifest.json"):
        read_run(tmp_path)
    with pytest.raises(CheckpointError, match="or one of several"):
        read_seeds(tmp_path)
    folder = write_run(tmp_path / "run")
    (folder / "ranks.npz").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="not a complete run folder"):
        read_run(folder)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is not the manifest of a run: expected recommender, settings"):
        read_run(folder)
