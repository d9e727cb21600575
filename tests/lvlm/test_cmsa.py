import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_features.config import LossSettings
from sda_features.lvlm.cmsa import (
    BaseRelations,
    alignment_loss,
    blended,
    cross_modal_logits,
    kept_relations,
    normalized_entropy,
    structural_loss,
    teacher_logits,
)
from tests.reference.cmsa import blend, cmsa, kept, teacher

PLAIN: dict[str, Any] = {"centre": False, "structure_weight": 0}  # Eq. 1-3 alone


def vectors(seed: int, n: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    text, image = torch.tensor(np.random.default_rng(seed).normal(size=(2, n, 5)), dtype=dtype)
    return text, image


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 7),
    tau=st.floats(0.05, 3),
    heat=st.floats(0.05, 100),
    weight=st.floats(0, 1),
    own=st.floats(0, 0.9),
    behaviour=st.floats(0, 0.9),
    literal=st.booleans(),
)
def test_the_loss_equals_the_formula_entry_by_entry(
    seed: int, n: int, tau: float, heat: float, weight: float, own: float, behaviour: float, literal: bool
) -> None:
    text, image = vectors(seed, n)
    partners = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < 0.4
    rows = teacher_logits(text, image, heat, weight).softmax(dim=1)
    rows = blended(blended(rows, torch.eye(n), own), partners.double(), behaviour)
    plain = blend(teacher(text.tolist(), image.tolist(), heat, weight), own, partners.tolist(), behaviour)
    assert rows.tolist() == [pytest.approx(row, abs=1e-9) for row in plain]
    loss = structural_loss(cross_modal_logits(text, image, tau), rows, "literal" if literal else "proper")
    assert loss.item() == pytest.approx(cmsa(text.tolist(), image.tolist(), tau, plain, literal), rel=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 7), temperature=st.floats(0.05, 3))
def test_kept_relations_equal_the_formula_entry_by_entry(seed: int, n: int, temperature: float) -> None:
    text, base = vectors(seed, n)
    expected = kept(text.tolist(), base.tolist(), temperature)
    assert kept_relations(text, base, temperature).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert kept_relations(base, base, temperature).item() == pytest.approx(0, abs=1e-12)


def test_gradients_of_every_term_are_those_of_small_differences() -> None:
    """Singles of both modalities too: 5 items, one more text and two more pictures, centred, normalised."""
    text, image, base_text, base_image = (
        torch.tensor(np.random.default_rng(seed).normal(size=(rows, 6)), dtype=torch.float32)
        for seed, rows in enumerate((6, 7, 6, 7))
    )
    partners = torch.tensor(np.roll(np.eye(5), 2, axis=0) > 0)
    told = BaseRelations(5, F.normalize(base_text), F.normalize(base_image), 0.4, (0.3, 0.5), partners)
    every = LossSettings.parse(centre=True, structure_weight=2, teacher_self_weight=0.1)
    text.requires_grad_()
    image.requires_grad_()
    alignment_loss(text, image, every, 0.2, told).loss.backward()
    for vectors_ in (text, image):
        for place in ((0, 1), (4, 0), (5, 3)):  # the last is a single
            found = []
            for sign in (1, -1):
                with torch.no_grad():
                    vectors_[place] += sign * 1e-2
                    found.append(alignment_loss(text, image, every, 0.2, told).loss.item())
                    vectors_[place] -= sign * 1e-2
            assert vectors_.grad[place].item() == pytest.approx((found[0] - found[1]) / 2e-2, abs=2e-3)
            assert abs(vectors_.grad[place].item()) > 1e-3, "vacuous"


def test_literal_and_proper_second_direction_differ_and_only_the_proper_one_can_vanish() -> None:
    text, image = vectors(0, 6)
    logits = teacher_logits(text, image, 1.0)
    rows = logits.softmax(dim=1)
    assert structural_loss(logits, rows, "proper").item() == pytest.approx(0, abs=1e-12)
    assert (rows.sum(dim=0) - 1).abs().max() > 0.05, "vacuous: the columns of this T happen to sum to 1"
    assert abs(structural_loss(logits, rows, "literal").item()) > 1e-3


def test_infonce_is_the_symmetric_cross_entropy_with_the_item_itself() -> None:
    text, image = vectors(4, 8, torch.float32)
    infonce = LossSettings.parse(kind="infonce", normalize=False, **PLAIN)
    found = alignment_loss(text, image, infonce, 0.5, BaseRelations(8))
    scores, own = text @ image.T / 0.5, torch.arange(8)
    expected = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert found.teacher_entropy == pytest.approx(0, abs=1e-6)


MOVING = LossSettings.parse(teacher="moving", **PLAIN)


def test_a_moving_teacher_sends_no_gradient_unless_asked() -> None:
    gradients = []
    for detach in (True, False):
        text, image = (vector.requires_grad_() for vector in vectors(1, 5, torch.float32))
        choice = LossSettings.parse(teacher="moving", detach_teacher=detach, **PLAIN)
        alignment_loss(text, image, choice, choice.temperature, BaseRelations(5)).loss.backward()
        assert text.grad.isfinite().all()
        gradients.append(text.grad)
    assert not torch.allclose(gradients[0], gradients[1])


def test_a_fixed_teacher_does_not_follow_the_vectors_and_a_moving_one_does() -> None:
    text, image = vectors(5, 9, torch.float32)
    told = BaseRelations(9, *map(F.normalize, vectors(6, 9, torch.float32)), 0.3)
    nearer = text + 3  # all vectors move towards one point
    fixed, moving = (
        [alignment_loss(t, image + (t - text), choice, 0.07, told).teacher_entropy for t in (text, nearer)]
        for choice in (LossSettings.parse(**PLAIN), MOVING)
    )
    assert fixed[0] == fixed[1]
    assert moving[1] > moving[0] + 0.05


def test_literal_teacher_on_unit_vectors_is_nearly_uniform_and_reported() -> None:
    text, image = vectors(2, 16, torch.float32)
    literal, sharp = (
        alignment_loss(text, image, MOVING, 0.07, BaseRelations(16, None, None, heat)).teacher_entropy
        for heat in (1 / 0.07, 0.07)
    )
    assert literal > 0.999
    assert sharp < 0.9


def test_entropy_bounds() -> None:
    assert normalized_entropy(torch.full((4, 4), 0.25)) == pytest.approx(1)
    assert normalized_entropy(torch.eye(4)) == 0


def test_spread_is_one_when_all_vectors_are_alike() -> None:
    same = torch.ones(4, 3)
    assert alignment_loss(same, same, MOVING, 0.07, BaseRelations(4)).spread == pytest.approx(1)


def test_a_learned_temperature_gets_a_gradient() -> None:
    text, image = vectors(3, 6, torch.float32)
    log_temperature = torch.tensor(math.log(0.2), requires_grad=True)
    alignment_loss(text, image, MOVING, log_temperature.exp(), BaseRelations(6)).loss.backward()
    assert log_temperature.grad.abs() > 0
