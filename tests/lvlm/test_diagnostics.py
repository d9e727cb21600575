import json
import math
import xml.etree.ElementTree as ElementTree
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sda_features.config import AdapterSettings, LossSettings, PromptSettings
from sda_features.errors import SettingsError
from sda_features.lvlm.backbone import PromptBatch
from sda_features.lvlm.cmsa import BaseRelations, LossOutput, alignment_loss
from sda_features.lvlm.diagnostics import (
    Conflict,
    Subject,
    diagnose,
    fresh,
    gradient_cosine,
    modality_gradients,
    negative_share,
    norm_ratio,
)
from sda_features.lvlm.encoder import PromptEncoder
from sda_features.report.conflict import conflict_chart, conflict_table
from tests.lvlm.conftest import MakeEncoder, Models, randomise
from tests.lvlm.test_adapt import write_catalogue
from tests.lvlm.test_export import write_checkpoint
from tests.lvlm.test_gradient_cache import EVERY_TERM, ITEMS, batches, every_term, known
from tests.shop import on_cpu, run


@pytest.mark.parametrize(
    ("first", "second", "cosine"),
    [
        ([3.0, 4.0], [4.0, -3.0], 0.0),
        ([1.0, 2.0], [2.0, 4.0], 1.0),
        ([1.0, 0.0], [-1.0, 1.0], -(0.5**0.5)),
        ([1.0, 2.0, 2.0], [2.0, 1.0, 2.0], 8 / 9),
    ],
)
def test_cosine_by_hand(first: list[float], second: list[float], cosine: float) -> None:
    assert gradient_cosine(torch.tensor(first), torch.tensor(second)) == pytest.approx(cosine, abs=1e-6)


def test_a_gradient_of_zero_has_no_direction() -> None:
    zero, one = torch.zeros(2, 2), torch.ones(2, 2)
    assert math.isnan(gradient_cosine(zero, one))
    assert math.isnan(negative_share([-1.0, math.nan]))
    assert math.isnan(norm_ratio([(one, one), (one, zero)]))


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=4), st.floats(0.5, 4))
def test_cosine_ignores_length_and_shape(values: list[float], scale: float) -> None:
    first, second = torch.tensor(values, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    cosine = gradient_cosine(first, second)
    again = gradient_cosine(second.reshape(2, 2), scale * first.reshape(2, 2))
    assert again == pytest.approx(cosine, nan_ok=True, abs=1e-6)
    assert math.isnan(cosine) or -1 - 1e-9 <= cosine <= 1 + 1e-9


def test_share_and_ratio_by_hand() -> None:
    assert negative_share([-0.1, 0.2, 0.0, -0.3]) == 0.5
    five, ten, twenty = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0]), torch.tensor([0.0, 20.0])
    assert norm_ratio([(five, ten), (twenty, ten)]) == pytest.approx(1)
    assert norm_ratio([(five, twenty)]) == pytest.approx(0.25)
    assert norm_ratio([(twenty, five), (five, five)]) == pytest.approx(2)


def toy_batch(modality: str, values: list[float]) -> PromptBatch:
    return PromptBatch(modality, torch.tensor(values)[:, None], torch.ones(len(values)), None, None)


def test_paths_of_their_own_are_orthogonal_and_opposed_losses_are_opposite() -> None:
    shared = torch.tensor([[1.0, 2.0], [3.0, -1.0]], requires_grad=True)
    steps = [toy_batch("text", [1.0, 2.0]), toy_batch("image", [1.0]), toy_batch("image", [2.0])]

    def disentangled(batch: PromptBatch) -> Tensor:
        return batch.input_ids * shared[:, 0 if batch.modality == "text" else 1]

    def entangled(batch: PromptBatch) -> Tensor:
        return batch.input_ids * shared[:, 0]

    def scalar_product(text: Tensor, image: Tensor) -> LossOutput:
        return LossOutput((text * image).sum(), math.nan, math.nan)

    def opposed(text: Tensor, image: Tensor) -> LossOutput:
        return LossOutput(text.sum() - 2 * image.sum(), math.nan, math.nan)

    (text,), (image,) = modality_gradients(disentangled, steps, [shared], scalar_product).values()
    assert text.norm() > 0
    assert image.norm() > 0
    assert gradient_cosine(text, image) == 0

    found = modality_gradients(entangled, steps, [shared], opposed)
    (text,), (image,) = found["text"], found["image"]
    assert text.tolist() == [[3.0, 0.0], [3.0, 0.0]]
    assert image.tolist() == [[-6.0, 0.0], [-6.0, 0.0]]
    assert gradient_cosine(text, image) == pytest.approx(-1)
    assert norm_ratio([(text, image)]) == pytest.approx(0.5)


def detached_pass(encoder: PromptEncoder, modality: str, parameters: list[Tensor], loss: Any) -> list[Tensor]:
    """The paper's procedure word for word: one backward pass with the other modality's vectors detached."""
    vectors = [encoder(batch) for batch in batches(encoder, ITEMS)]
    other = 1 if modality == "text" else 0
    vectors[other] = vectors[other].detach()
    return list(torch.autograd.grad(loss(*vectors).loss, parameters))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("kind", ["moda", "lora"])
@pytest.mark.parametrize("detach_teacher", [True, False])
def test_gradients_are_those_of_two_passes_with_the_other_modality_detached(
    make_encoder: MakeEncoder, kind: str, quantization: str, detach_teacher: bool
) -> None:
    encoder = randomise(make_encoder(quantization=quantization, kind=kind, dropout=0.0)).train()
    parameters = [value for name, value in encoder.trainable().items() if name.endswith("_proj.B")]

    def loss(text: Tensor, image: Tensor) -> LossOutput:
        moving = LossSettings(teacher="moving", structure_weight=0, detach_teacher=detach_teacher)
        return alignment_loss(text, image, moving, 0.07, BaseRelations(len(text)))

    found = modality_gradients(encoder, batches(encoder, 3), parameters, loss)
    for modality in ("text", "image"):
        slow = detached_pass(encoder, modality, parameters, loss)
        for got, expected in zip(found[modality], slow, strict=True):
            assert expected.norm() > 0, "vacuous: no gradient"
            assert (got - expected).norm() < 1e-3 * expected.norm()


def subject(encoder: PromptEncoder, **adapter: Any) -> Subject:
    settings = AdapterSettings.parse(**adapter)
    return Subject("run", encoder, settings, PromptSettings(), EVERY_TERM, 0.07)


def by_place(found: list[Conflict]) -> dict[tuple[str, str, str], Conflict]:
    return {(conflict.module, conflict.columns, conflict.layers): conflict for conflict in found}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_diagnosis_is_what_the_detached_passes_give_in_the_last_layer(
    make_encoder: MakeEncoder, quantization: str
) -> None:
    """Dropout is set in the adapter and must play no part; 4-bit kernels must see training mode."""
    encoder = randomise(make_encoder(quantization=quantization, dropout=0.5))
    found = by_place(diagnose(subject(encoder), [(batches(encoder, 2), known())]))
    assert set(found) == set(product(("q_proj", "k_proj"), ("first expert", "all"), ("last", "all")))
    trainable = encoder.trainable()
    parameters = [trainable[f"language_model.layers.{layer}.self_attn.k_proj.B"] for layer in (0, 1)]
    text, image = (detached_pass(encoder, modality, parameters, every_term) for modality in ("text", "image"))
    flat = [(t.flatten(), i.flatten()) for t, i in zip(text, image, strict=True)]
    cosines = [torch.cosine_similarity(t, i, dim=0).item() for t, i in flat]
    first = torch.cosine_similarity(text[1][:, :2].flatten(), image[1][:, :2].flatten(), dim=0).item()
    last, every = found["k_proj", "all", "last"], found["k_proj", "all", "all"]
    assert last.cosine == pytest.approx(cosines[1], abs=2e-3)
    assert last.norm_ratio == pytest.approx((flat[1][0].norm() / flat[1][1].norm()).item(), rel=1e-2)
    assert found["k_proj", "first expert", "last"].cosine == pytest.approx(first, abs=2e-3)
    assert every.cosine == pytest.approx(sum(cosines) / 2, abs=2e-3)
    assert every.negative_share == sum(cosine < 0 for cosine in cosines) / 2
    assert (last.measurements, every.measurements) == (1, 2)
    assert math.isnan(every.standard_error)


def test_the_standard_error_is_over_batches(make_encoder: MakeEncoder) -> None:
    encoder = randomise(make_encoder())
    made = batches(encoder, 3)  # three of text, then three of pictures
    halves = [([made[0], made[3]], known(3)), ([made[1], made[4]], known(3))]
    first, second = (by_place(diagnose(subject(encoder), [half]))["q_proj", "all", "all"] for half in halves)
    both = by_place(diagnose(subject(encoder), halves))["q_proj", "all", "all"]
    assert first.cosine != second.cosine
    assert both.cosine == pytest.approx((first.cosine + second.cosine) / 2)
    assert both.standard_error == pytest.approx(abs(first.cosine - second.cosine) / 2)


def test_experts_of_their_own_leave_no_conflict(make_encoder: MakeEncoder) -> None:
    """Gates so sharp that text uses expert 0 and pictures expert 1: their gradients share no column."""
    encoder = randomise(make_encoder(experts=2))
    with torch.no_grad():
        encoder.gates.embedding.zero_()
        encoder.gates.embedding[0, 0] = encoder.gates.embedding[1, 1] = 1
        encoder.gates.weight.zero_()
        encoder.gates.weight[:, 0, 0] = encoder.gates.weight[:, 1, 1] = 1000
    found = by_place(diagnose(subject(encoder, experts=2), [(batches(encoder, ITEMS), known())]))
    whole = found["q_proj", "all", "all"]
    assert (whole.cosine, whole.negative_share) == (0, 0)
    assert whole.norm_ratio > 0
    assert math.isnan(found["q_proj", "first expert", "last"].cosine)


def test_plain_lora_has_no_experts_and_a_fresh_adapter_has_gradients(tiny_models: Models) -> None:
    made = fresh(AdapterSettings(kind="lora"), on_cpu(tiny_models["qwen3_vl"]))
    found = diagnose(made, [(batches(made.encoder, 4), known())], modules=["up_proj"])
    assert [(conflict.columns, conflict.layers) for conflict in found] == [("all", "last"), ("all", "all")]
    assert all(conflict.norm_ratio > 0 and conflict.cosine != 0 for conflict in found)


def test_an_unknown_module_is_refused_with_those_there_are(make_encoder: MakeEncoder) -> None:
    encoder = make_encoder(target_modules=("q_proj", "v_proj"))
    with pytest.raises(SettingsError, match="no linear named k_proj; --modules can be q_proj, v_proj"):
        diagnose(subject(encoder), [])


ROWS = [
    {"name": name, "adapter": "moda", "module": "q_proj", "columns": "all", "layers": layers}
    | {"cosine": cosine, "standard_error": 0.1, "negative_share": 0.5, "norm_ratio": 2.0, "measurements": 4}
    for name, cosine in (("a", -0.25), ("<b>", 0.5))
    for layers in ("last", "all")
]


def test_the_table_puts_runs_below_each_other() -> None:
    lines = conflict_table(ROWS).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    runs = [["a", "-0.250"], ["<b>", "0.500"]]
    assert [row[2:5] for row in cells] == [[layers, *run] for layers in ("last", "all") for run in runs]


def test_bars_of_the_chart_start_at_zero_and_are_as_long_as_the_cosine() -> None:
    unknown = [{**ROWS[0], "cosine": math.nan}]
    root = ElementTree.fromstring(conflict_chart([*ROWS, *unknown]))
    space = "{http://www.w3.org/2000/svg}"
    (line,) = root.iter(f"{space}line")
    zero = float(line.attrib["x1"])
    bars = [(float(r.attrib["x"]), float(r.attrib["width"])) for r in root.iter(f"{space}rect")]
    (left, short), (right, long) = bars
    assert left + short == pytest.approx(zero)
    assert right == zero
    assert long == pytest.approx(2 * short)
    assert any("<b>" in (text.text or "") for text in root.iter(f"{space}text"))


def test_the_command_compares_checkpoints_and_fresh_adapters(tmp_path: Path, tiny_model: Path) -> None:
    catalogue = write_catalogue(tmp_path / "items.parquet")
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tiny_model)
    arguments = ["diagnose", checkpoint, "--catalog", catalogue, "--max-bad-rows", 0.5]
    arguments += ["--items", 12, "--batch-size", 6, "--micro-batch-size", 4]
    more = ["--adapter", "lora", "--model", tiny_model, "--quantization", "none", "--device", "cpu", "--json"]
    rows = json.loads(run(*arguments, *more))["conflict"]
    assert {row["name"] for row in rows} == {str(checkpoint), "fresh lora"}
    assert all(-1 <= row["cosine"] <= 1 and row["norm_ratio"] > 0 for row in rows)
    assert {row["measurements"] for row in rows} == {2, 4}
    assert "| q_proj   | first expert" in run(*arguments, "--output", tmp_path / "out")
    again = json.loads((tmp_path / "out" / "conflict.json").read_text())["conflict"]
    assert again == [pytest.approx(row) for row in rows if row["name"] == str(checkpoint)]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["conflict.json", "conflict.md", "conflict.svg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "Give a CHECKPOINT, or --adapter"), (["--adapter", "moda"], "name that with --model")],
)
def test_the_command_says_what_is_missing(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run("diagnose", "--catalog", "items.parquet", *arguments)
