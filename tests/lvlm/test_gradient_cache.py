from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F

from sda_features.config import LossSettings
from sda_features.lvlm.backbone import PromptBatch
from sda_features.lvlm.cmsa import BaseRelations, LossOutput, alignment_loss
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.gradient_cache import accumulate_gradients, passes
from tests.lvlm.conftest import PROMPTS, TEXTS, MakeEncoder, picture, randomise

ITEMS = 7


def batches(encoder: PromptEncoder, micro: int, items: Sequence[int] = range(ITEMS)) -> list[PromptBatch]:
    """Texts and then pictures of `items`, `micro` at a time."""
    backbone = encoder.backbone
    prompts = {
        "text": [backbone.text_tokens(TEXTS[i % 3] + f" number {i}") for i in items],
        "image": [backbone.image_tokens(picture(i), PROMPTS) for i in items],
    }
    return [
        backbone.collate(made[start : start + micro], modality)
        for modality, made in prompts.items()
        for start in range(0, len(items), micro)
    ]


def known(count: int = ITEMS) -> BaseRelations:
    """Base vectors and partners of so many items, at random."""
    random = torch.Generator().manual_seed(0)
    text, image = (F.normalize(torch.randn(count, 12, generator=random), dim=1) for _ in range(2))
    partners = torch.rand(count, count, generator=random) < 0.2
    partners = (partners | partners.T) & ~torch.eye(count).bool()
    return BaseRelations(count, text, image, 0.3, (0.2, 0.4), partners)


EVERY_TERM = LossSettings.parse(
    centre=True, teacher_self_weight=0.2, teacher_text_weight=0.3, structure_weight=1.5, behaviour_weight=0.5
)


def every_term(text: torch.Tensor, image: torch.Tensor) -> LossOutput:
    """A loss in which all terms are at work."""
    return alignment_loss(text, image, EVERY_TERM, 0.07, known(len(text)))


def planned(micro_batches: list[PromptBatch]) -> tuple[Iterator[PromptBatch], int]:
    """The arguments that name the batches of a step."""
    count = len(micro_batches)
    return iter(micro_batches * passes(count)), count


def gradients(encoder: PromptEncoder, micro: int) -> tuple[float, dict[str, torch.Tensor]]:
    encoder.zero_grad()
    log_temperature = torch.zeros((), requires_grad=True)
    result = accumulate_gradients(
        encoder,
        *planned(batches(encoder, micro)),
        lambda text, image: alignment_loss(text, image, EVERY_TERM, log_temperature.exp() * 0.07, known()),
    )
    found = {name: parameter.grad for name, parameter in encoder.trainable().items()}
    return result.loss.item(), {"temperature": log_temperature.grad, **found}


@pytest.mark.parametrize("micro", [1, 2, 3, 6])
def test_cached_gradients_equal_those_of_one_step(make_encoder: MakeEncoder, micro: int) -> None:
    encoder = randomise(make_encoder(dropout=0.0)).train()
    plain_loss, plain = gradients(encoder, ITEMS)
    cached_loss, cached = gradients(encoder, micro)
    assert cached_loss == pytest.approx(plain_loss, rel=1e-5)
    for name, expected in plain.items():
        assert expected.abs().max() > 0, f"vacuous: {name} has no gradient"
        error = (cached[name] - expected).norm() / expected.norm()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"


def test_dropout_is_replayed(make_encoder: MakeEncoder) -> None:
    """With dropout the two encodings of a micro batch must agree, or the gradient belongs to no loss."""
    encoder = randomise(make_encoder(dropout=0.5)).train()
    seen = []

    def recording(batch: PromptBatch) -> torch.Tensor:
        seen.append(encoder(batch))
        return seen[-1]

    micro_batches = batches(encoder, 2)
    count = len(micro_batches)
    accumulate_gradients(recording, *planned(micro_batches), every_term)
    assert len(seen) == 2 * count
    assert not torch.equal(encoder(micro_batches[0]), seen[0]), "vacuous: dropout is not active"
    for first, second in zip(seen[:count], seen[count:], strict=True):
        torch.testing.assert_close(first, second)
    assert not torch.equal(torch.rand(3), torch.rand(3))


def test_random_state_moves_on_after_a_replay(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(dropout=0.5).train()
    gradients(encoder, 2)
    state = torch.get_rng_state()
    gradients(encoder, 2)
    assert not torch.equal(state, torch.get_rng_state())
