from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_features.config import LossSettings
from sda_features.lvlm.cmsa import (
    alignment_loss,
    cross_modal_logits,
    infonce_loss,
    normalized_entropy,
    structural_loss,
    teacher_logits,
)
from tests.reference.cmsa import cmsa


def vectors(seed: int, n: int, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    text, image = (torch.tensor(random.normal(size=(n, d))) for _ in range(2))
    return text, image


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 7),
    tau=st.floats(0.05, 3),
    scale=st.floats(0.01, 20),
    literal=st.booleans(),
)
def test_structural_loss_equals_the_formula_entry_by_entry(
    seed: int, n: int, tau: float, scale: float, literal: bool
) -> None:
    text, image = vectors(seed, n)
    loss = structural_loss(
        cross_modal_logits(text, image, tau),
        teacher_logits(text, image, scale),
        "literal" if literal else "proper",
    )
    assert loss.item() == pytest.approx(cmsa(text.tolist(), image.tolist(), tau, scale, literal), rel=1e-9)


def test_literal_and_proper_second_direction_differ_and_only_the_proper_one_can_vanish() -> None:
    text, image = vectors(0, 6)
    teacher = teacher_logits(text, image, 1.0)
    assert structural_loss(teacher, teacher, "proper").item() == pytest.approx(0, abs=1e-12)
    columns = F.softmax(teacher, dim=1).sum(dim=0)
    assert (columns - 1).abs().max() > 0.05, "vacuous: the columns of this T happen to sum to 1"
    assert abs(structural_loss(teacher, teacher, "literal").item()) > 1e-3


def test_infonce_of_constant_scores_is_log_n() -> None:
    assert infonce_loss(torch.zeros(8, 8)).item() == pytest.approx(math.log(8))


def test_teacher_sends_no_gradient_unless_asked() -> None:
    gradients = []
    for detach in (True, False):
        text, image = (vector.float().requires_grad_() for vector in vectors(1, 5))
        choice = LossSettings.parse(detach_teacher=detach)
        alignment_loss(text, image, choice, choice.temperature).loss.backward()
        assert text.grad is not None
        gradients.append(text.grad)
    assert not torch.allclose(gradients[0], gradients[1])

    text, image = (F.normalize(vector.float(), dim=1).requires_grad_() for vector in vectors(1, 5))
    teacher = teacher_logits(text, image, 1 / 0.07).detach()
    structural_loss(cross_modal_logits(text, image, 0.07), teacher).backward()
    fixed, _ = torch.autograd.grad(
        alignment_loss(text, image, LossSettings(), 0.07).loss, (text, image), allow_unused=False
    )
    # Through the normalisation only the part of the gradient that is tangent to the sphere remains.
    assert text.grad is not None
    tangent = text.grad - (text.grad * text).sum(1, keepdim=True) * text
    torch.testing.assert_close(fixed, tangent.detach(), rtol=1e-4, atol=1e-6)


def test_literal_teacher_on_unit_vectors_is_nearly_uniform_and_reported() -> None:
    text, image = (vector.float() for vector in vectors(2, 16))
    literal = alignment_loss(text, image, LossSettings.parse(teacher_temperature=None), 0.07)
    assert literal.teacher_entropy > 0.999
    sharp = alignment_loss(text, image, LossSettings.parse(teacher_temperature=0.07), 0.07)
    assert sharp.teacher_entropy < 0.9


def test_entropy_bounds() -> None:
    assert normalized_entropy(torch.zeros(4, 4)) == pytest.approx(1)
    assert normalized_entropy(1e4 * torch.eye(4)) == pytest.approx(0, abs=1e-6)


def test_spread_is_one_when_all_vectors_are_alike() -> None:
    same = torch.ones(4, 3)
    assert alignment_loss(same, same, LossSettings(), 0.07).spread == pytest.approx(1)


def test_a_learned_temperature_gets_a_gradient() -> None:
    text, image = (vector.float() for vector in vectors(3, 6))
    log_temperature = torch.tensor(math.log(0.2), requires_grad=True)
    alignment_loss(text, image, LossSettings(), log_temperature.exp()).loss.backward()
    assert log_temperature.grad is not None
    assert log_temperature.grad.abs() > 0
