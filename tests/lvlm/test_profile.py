"""Operator counts of a training step and of an encode step by torch's profiler: nothing asks a GPU layer by layer."""

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sda_features.config import AdapterSettings, ProjectionSettings
from sda_features.demo.model import build_tiny_model
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.cmsa import alignment_loss
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.lvlm.gradient_cache import accumulate_gradients
from tests.lvlm.conftest import ARCHITECTURES, TEXTS, image_batch, text_batch
from tests.lvlm.test_gradient_cache import EVERY_TERM, known
from tests.shop import on_cpu

LAYERS = (2, 4)
# What makes the host wait for a GPU: a number read from a tensor, or a shape that depends on its contents.
WAITING = (
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::masked_select",
)
GATE = "aten::einsum"  # `expert_weights` has the only one


@pytest.fixture(scope="module", params=ARCHITECTURES)
def encoders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[PromptEncoder]:
    """The same architecture with two and with four layers."""
    made = []
    for layers in LAYERS:
        folder = tmp_path_factory.mktemp("deep") / "model"
        build_tiny_model(folder, TEXTS, architecture=request.param, hidden_size=64, layers=layers)
        backbone = Backbone(on_cpu(folder, dtype="float32"))
        made.append(PromptEncoder(backbone, AdapterSettings(), ProjectionSettings()))
    return made


def counted(job: Callable[[], object]) -> Counter[str]:
    """Name of an operator -> how often it ran."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        job()
    return Counter({event.key: event.count for event in seen.key_averages()})


def training_step(encoder: PromptEncoder) -> Counter[str]:
    """All but AdamW: its fused kernel for CPUs reads the step numbers, which are on the card where there is one."""
    batches = [text_batch(encoder.backbone), image_batch(encoder.backbone)]
    loss = partial(alignment_loss, settings=EVERY_TERM, temperature=0.07, known=known(3))
    encoder.train()

    def step() -> None:
        encoder.zero_grad()
        accumulate_gradients(encoder, iter(batches), 2, loss)
        torch.nn.utils.clip_grad_norm_(encoder.trainable().values(), 1.0)

    return counted(step)


@torch.inference_mode()
def encode_step(encoder: PromptEncoder) -> Counter[str]:
    batches = [text_batch(encoder.backbone), image_batch(encoder.backbone)]
    encoder.eval()
    return counted(lambda: [encoder(batch) for batch in batches])


@pytest.mark.parametrize("step", [training_step, encode_step])
def test_nothing_waits_layer_by_layer_and_gates_are_computed_once_a_pass(
    encoders: list[PromptEncoder], step: Callable[[PromptEncoder], Counter[str]]
) -> None:
    few, many = map(step, encoders)
    assert many["aten::mm"] + many["aten::addmm"] > few["aten::mm"] + few["aten::addmm"], "vacuous: no deeper"
    assert {name: many[name] - few[name] for name in WAITING} == dict.fromkeys(WAITING, 0)
    assert few[GATE] == many[GATE] == 2  # a text pass and an image pass
