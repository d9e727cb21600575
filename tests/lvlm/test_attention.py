"""A batch as one sequence gives the states that each prompt has alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sda_features.lvlm import attention
from sda_features.lvlm.attention import Layout, common_prefix
from sda_features.lvlm.backbone import Backbone, PromptBatch
from tests.lvlm.conftest import ARCHITECTURES, MakeBackbone, MakeEncoder, image_batch, randomise, text_batch

PICTURE = 6


@pytest.fixture(params=[0, 256], ids=["block by block", "dense"])
def short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SHORT", request.param)


def real_states(backbone: Backbone, batch: PromptBatch) -> Tensor:
    states = backbone.hidden_states(batch)
    return torch.cat([row[:length] for row, length in zip(states, batch.lengths, strict=True)])


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("make_batch", [text_batch, image_batch])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_are_those_of_the_padded_batch(
    make_backbone: MakeBackbone, architecture: str, make_batch: Callable[[Backbone], PromptBatch]
) -> None:
    backbone = make_backbone(architecture)
    batch = make_batch(backbone)
    assert len(set(batch.lengths.tolist())) > 1
    assert common_prefix(batch.input_ids, batch.lengths, backbone.image_token_id) > 2
    tokens = count_tokens(backbone)
    padded = real_states(backbone, batch)
    with torch.inference_mode():
        shared = real_states(backbone, batch)
    assert tokens[1] < tokens[0] == batch.input_ids.numel()
    torch.testing.assert_close(shared, padded, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_windows_of_one_size_attend_together_as_they_do_one_by_one(
    make_backbone: MakeBackbone, architecture: str
) -> None:
    backbone = make_backbone(architecture)
    batch = image_batch(backbone, 4)
    visual = backbone.model.visual

    def vision() -> tuple[Tensor, Tensor]:
        patches = batch.patches.clone().requires_grad_()
        states = visual(patches, grid_thw=batch.grids).last_hidden_state
        states.square().sum().backward()
        return states.detach(), patches.grad

    assert visual.config._attn_implementation == attention.WINDOWS
    together = vision()
    visual.config._attn_implementation = "sdpa"
    for found, expected in zip(together, vision(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["moda", "lora"])
def test_adapters_see_the_shared_sequence_as_they_see_the_padded_batch(
    make_encoder: MakeEncoder, kind: str
) -> None:
    encoder = randomise(make_encoder(kind=kind, rank=4, experts=2, dropout=0.0))
    for batch in (text_batch(encoder.backbone), image_batch(encoder.backbone)):
        padded = encoder(batch).detach()
        with torch.inference_mode():
            torch.testing.assert_close(encoder(batch), padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "lengths", "expected"),
    [
        ([[1, 2, 3, 4], [1, 2, 5, 0]], [4, 3], 2),
        ([[1, 2, 3, 4], [1, 2, 3, 0]], [4, 3], 2),  # each row keeps a token of its own
        ([[1, 2, 3], [1, 2, 3]], [3, 3], 2),
        ([[1, PICTURE, PICTURE], [1, PICTURE, PICTURE]], [3, 3], 1),
        ([[3, 1, 2], [1, 1, 2]], [3, 3], 0),
        ([[1], [1]], [1, 1], 0),
    ],
)
def test_common_prefix(rows: list[list[int]], lengths: list[int], expected: int) -> None:
    assert common_prefix(torch.tensor(rows), torch.tensor(lengths), PICTURE) == expected


def test_a_layout_joins_and_splits() -> None:
    padded = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 6]])
    layout = Layout(prefix=2, rows=2)
    joined = layout.join(padded)
    assert joined.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert layout.join(padded.expand(3, 2, 4)).tolist() == [joined.tolist()] * 3
    assert layout.split(joined[..., None])[..., 0].tolist() == padded.tolist()


def count_tokens(backbone: Backbone) -> list[int]:
    """Number of positions of each later pass through the language model."""
    counts: list[int] = []
    backbone.model.language_model.norm.register_forward_hook(
        lambda module, inputs, output: counts.append(output.shape[0] * output.shape[1])
    )
    return counts
