from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sda_features.config import AdapterSettings
from sda_features.errors import BackboneError, SettingsError
from sda_features.lvlm.moda import MODALITIES, ModalityGates, adapted_layers, attach_adapter
from tests.lvlm.conftest import ARCHITECTURES, MakeBackbone, MakeEncoder, image_batch, randomise, text_batch
from tests.reference.moda import expert_loop


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_layer_equals_the_sum_over_experts(make_encoder: MakeEncoder, quantization: str) -> None:
    encoder = randomise(make_encoder(quantization=quantization, dropout=0.0)).eval()
    name, layer = next(iter(adapted_layers(encoder.model).items()))
    x = torch.randn(2, 5, layer.in_features)
    for position, modality in enumerate(MODALITIES):
        with torch.no_grad(), encoder.gates.select(modality):
            got = layer(x) - layer.get_base_layer()(x)
        expected = expert_loop(x, encoder.trainable(), name, 0, position, alpha=32.0)
        assert expected.abs().max() > 0.1, "vacuous: the update is zero"
        # int8's base layer is not deterministic to the bit
        tolerance = 2e-2 if quantization == "int8" else 1e-4
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_fresh_adapter_is_an_exact_no_op_on_every_architecture(
    make_encoder: MakeEncoder, architecture: str, quantization: str
) -> None:
    adapted = make_encoder(architecture, quantization).eval()
    plain = make_encoder(architecture, quantization, kind="none").eval()
    for make_batch in (text_batch, image_batch):
        with torch.no_grad():
            before, after = plain(make_batch(plain.backbone)), adapted(make_batch(adapted.backbone))
        assert torch.equal(before, after)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_adapter_trains_and_every_part_gets_a_gradient(
    make_encoder: MakeEncoder, architecture: str
) -> None:
    encoder = randomise(make_encoder(architecture, "nf4"))
    for make_batch in (text_batch, image_batch):
        encoder(make_batch(encoder.backbone)).square().mean().backward()
    trainable = encoder.trainable()
    assert {id(p) for p in encoder.parameters() if p.requires_grad} == {id(p) for p in trainable.values()}
    assert [name for name, value in trainable.items() if value.grad is None or not value.grad.any()] == []
    assert all(name.startswith(("language_model.", "gates.")) for name in trainable)


def test_modalities_differ_once_trained_and_rows_of_a_mixed_batch_are_routed(
    make_encoder: MakeEncoder,
) -> None:
    encoder = randomise(make_encoder(dropout=0.0)).eval()
    batch = text_batch(encoder.backbone)

    def states(modality: str | torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), encoder.gates.select(modality):
            return encoder.backbone.hidden_states(batch)

    as_text, as_image, mixed = states("text"), states("image"), states(torch.tensor([0, 1, 0]))
    assert not torch.allclose(as_text[1], as_image[1], atol=1e-3)
    torch.testing.assert_close(mixed[0], as_text[0])
    torch.testing.assert_close(mixed[1], as_image[1])
    torch.testing.assert_close(mixed[2], as_text[2])


def test_gates_of_one_expert_are_plain_lora(make_encoder: MakeEncoder) -> None:
    moda, lora = (make_encoder(kind=kind, experts=1).eval() for kind in ("moda", "lora"))
    weights = randomise(moda).trainable()
    with torch.no_grad():
        for name, parameter in lora.trainable().items():
            parameter.copy_(weights[name])
        torch.testing.assert_close(moda(text_batch(moda.backbone)), lora(text_batch(lora.backbone)))


def test_gradient_checkpointing_keeps_each_pass_under_its_own_gates(make_encoder: MakeEncoder) -> None:
    """Both forward passes come before the backward pass, which recomputes them in turn."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = randomise(make_encoder(dropout=0.0))
        if checkpointing:
            encoder.enable_gradient_checkpointing()
        encoder.train()
        text, image = encoder(text_batch(encoder.backbone)), encoder(image_batch(encoder.backbone))
        (text[:2] * image[:2]).sum().backward()
        gradients.append({name: value.grad for name, value in encoder.trainable().items()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_outside_select_a_layer_refuses_to_run(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder()
    with pytest.raises(BackboneError, match="outside `ModalityGates.select`"):
        encoder.backbone.hidden_states(text_batch(encoder.backbone))


def test_no_matching_module_is_an_error_that_names_the_setting(make_backbone: MakeBackbone) -> None:
    with pytest.raises(BackboneError, match="--adapter-target-modules"):
        attach_adapter(make_backbone().model, AdapterSettings.parse(target_modules=("nope",)))


def test_rank_must_split_over_experts() -> None:
    with pytest.raises(SettingsError, match="rank 8 does not split over 3 experts"):
        AdapterSettings.parse(rank=8, experts=3)


def test_merging_is_refused_with_the_way_out(make_encoder: MakeEncoder) -> None:
    layer = next(iter(adapted_layers(make_encoder().model).values()))
    with pytest.raises(BackboneError, match="export it as LoRA"):
        layer.merge(safe_merge=True)


def test_gate_weights_sum_to_one_times_scaling() -> None:
    gates = ModalityGates(3, AdapterSettings.parse(rank=8, experts=4, alpha=32))
    values = gates()
    assert values.shape == (3, 2, 8)
    torch.testing.assert_close(values.sum(-1), torch.full((3, 2), 32 / 8 * 2))


def test_threads_select_each_for_itself(make_encoder: MakeEncoder) -> None:
    gates = make_encoder().gates
    with gates.select("text"), ThreadPoolExecutor(1) as other:
        mine = gates.selected
        assert other.submit(lambda: gates.selected).result() is None
        with gates.select("image"):
            assert gates.selected is not mine
        assert gates.selected is mine
