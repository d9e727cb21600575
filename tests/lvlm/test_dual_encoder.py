"""CLIP and SigLIP, held against transformers' own forward pass of one text and one picture."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sda_features.catalog.prompts import caption
from sda_features.catalog.rows import Item
from sda_features.config import BackboneSettings, PromptSettings
from sda_features.errors import BackboneError, SettingsError
from sda_features.lvlm.backbone import Backbone
from sda_features.lvlm.checkpoint import LoadedEncoder, pretrained
from sda_features.lvlm.dual_encoder import DualEncoder
from sda_features.lvlm.encode import encode_items
from tests.lvlm.conftest import PROMPTS, Models, picture
from tests.lvlm.dual_models import KINDS, TEXT_LIMIT, build_dual_model, published_vectors
from tests.shop import on_cpu

SIZES = [(70, 56), (56, 84), (112, 56), (300, 30), (20, 24)]
LONG = {f"fact {number}": f"Walnut {number} " * 9 for number in range(3)}


@pytest.fixture(scope="session")
def dual_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dual")
    for kind in KINDS:
        build_dual_model(folder / kind, kind)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="session")
def clip(dual_models: Models) -> Path:
    """The one for tests that hold for any kind."""
    return dual_models["clip"]


@pytest.fixture
def copy_of_clip(clip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip, tmp_path / "model"))


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest, dual_models: Models) -> DualEncoder:
    return load_dual(dual_models[request.param])


def load_dual(folder: Path, **prompts: int) -> DualEncoder:
    settings = BackboneSettings.parse(model=str(folder), dtype="float32", device="cpu")
    encoder = pretrained(settings, PromptSettings.parse(**prompts))
    assert isinstance(encoder, DualEncoder)
    return encoder


def make_items() -> list[Item]:
    """Texts with capitals, of many lengths; item 4 is longer than any model reads."""
    items = []
    for number in range(11):
        fields = {"title": f"Red Cotton Shirt, {number}", "brand": "Oak " * (number % 4)}
        image = picture(number, SIZES[number % len(SIZES)])
        items.append(Item(number + 1, f"i{number}", LONG if number == 4 else fields, image, f"hash{number}"))
    return items


@pytest.mark.parametrize("kind", KINDS)
def test_any_batching_gives_the_published_vectors(dual_models: Models, kind: str) -> None:
    encoder, items = load_dual(dual_models[kind]), make_items()
    texts = [caption(item.fields, PROMPTS) for item in items]
    if kind != "clip":
        texts = [text.lower() for text in texts]
    expected = published_vectors(dual_models[kind], texts, [item.image for item in items])
    for vectors in expected:
        nearest = (vectors @ vectors.T - 2 * np.eye(len(vectors))).max()
        assert nearest < 0.99999, "vacuous: two items are alike"
    for batch_size, shard_rows in ((32, 1024), (4, 6), (1, 1)):
        shards = list(encode_items(encoder, items, batch_size, shard_rows))
        assert sum(shard.texts_cut for shard in shards) == 1
        for modality, vectors in zip(("text", "image"), expected, strict=True):
            got = np.concatenate([getattr(shard, modality) for shard in shards])
            assert got.shape == (11, encoder.dim)
            np.testing.assert_allclose(got, vectors, rtol=0, atol=1e-5)


def test_siglip_reads_lower_case_whatever_its_tokenizer_does(dual_models: Models) -> None:
    encoder = load_dual(dual_models["siglip2-fixed"])
    cased, lower = (encoder.tokenizer(text)["input_ids"] for text in ("Oak", "oak"))
    assert cased != lower, "vacuous: the tokenizer sees to it"
    assert encoder.prompt({"brand": "Oak", "colour": "Red"}) == "oak, red"
    assert load_dual(dual_models["clip"]).prompt({"brand": "Oak", "colour": ""}) == "Oak"
    assert encoder.prompt({}) is None


def test_a_missing_modality_is_not_made_up(encoder: DualEncoder) -> None:
    bare = [Item(1, "a", {}, picture(1), "h1"), Item(2, "b", {"title": "Oak"}, None, "h2")]
    (shard,) = encode_items(encoder, [*bare, Item(3, "c", {}, None, "h3")])
    assert shard.item_ids == ["a", "b"]
    assert shard.text_found.tolist() == [False, True]
    assert shard.image_found.tolist() == [True, False]
    assert not shard.text[0].any()
    assert not shard.image[1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_cut_where_the_model_ends(dual_models: Models, kind: str) -> None:
    """On both sides of the limit, as the tokenizer itself cuts, and the end token stays."""
    encoder, limit = load_dual(dual_models[kind]), TEXT_LIMIT[kind.removesuffix("2-fixed")]
    assert encoder.text_limit == limit
    words = next(n for n in itertools.count(1) if encoder.text_tokens("oak " * n).cut)
    fitting, cut = encoder.text_tokens("oak " * (words - 1)), encoder.text_tokens("oak " * words)
    assert len(cut.token_ids) == limit
    assert limit - 4 <= len(fitting.token_ids) <= limit
    assert cut.token_ids[-1] == encoder.tokenizer.eos_token_id


def test_a_picture_waits_at_the_models_size_and_loses_nothing(encoder: DualEncoder) -> None:
    for size in SIZES:
        image = picture(7, size)
        waiting = encoder.shrink(image)
        assert waiting.width * waiting.height <= 32 * 32
        expected = encoder.image_processor(images=[image], return_tensors="pt")
        got = encoder.image_tokens(waiting)
        assert set(got) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=0, atol=0)
    assert encoder.shrink(Image.new("RGB", (9000, 1))).width <= 32 * 32  # not scaled up to gigabytes


def test_the_end_token_is_found_under_its_old_wrong_id(clip: Path, copy_of_clip: Path) -> None:
    """OpenAI's configurations call it 2, and transformers looks for the largest id then."""
    config = json.loads((clip / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] > 2
    config["text_config"]["eos_token_id"] = 2
    (copy_of_clip / "config.json").write_text(json.dumps(config))
    (new,), (old,) = (encode_items(load_dual(folder), make_items()) for folder in (clip, copy_of_clip))
    np.testing.assert_array_equal(new.text, old.text)


def test_a_version_follows_weights_preprocessing_and_the_length_of_fields(
    dual_models: Models, clip: Path, tmp_path: Path
) -> None:
    version = load_dual(clip).version
    assert load_dual(clip).version == version
    weights, pictures, tokens = (tmp_path / name for name in ("weights", "pictures", "tokens"))
    build_dual_model(weights, "clip", seed=1)
    shutil.copytree(clip, pictures)
    processor = pictures / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace('"resample": 3', '"resample": 2'))
    shutil.copytree(clip, tokens)
    content = json.loads((tokens / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (tokens / "tokenizer.json").write_text(json.dumps(content))
    others = [load_dual(folder).version for folder in (weights, pictures, tokens)]
    others += [load_dual(dual_models[kind]).version for kind in KINDS if kind != "clip"]
    others += [load_dual(clip, max_field_chars=50).version]
    assert len({version, *others}) == 1 + len(others)
    assert load_dual(clip, max_image_side=100).version == version  # is for LVMs


def test_vectors_are_float32_of_length_one_under_bfloat16(clip: Path) -> None:
    (shard,) = encode_items(pretrained(on_cpu(clip, dtype="bfloat16"), PROMPTS), make_items())
    (full,) = encode_items(load_dual(clip), make_items())
    assert shard.text.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(shard.image, axis=1), 1, atol=1e-6)
    assert (shard.text * full.text).sum(axis=1).min() > 0.99
    assert (shard.image * full.image).sum(axis=1).min() > 0.99


def test_a_qwen_is_loaded_as_before(tiny_models: Models) -> None:
    assert isinstance(pretrained(on_cpu(tiny_models["qwen2_vl"]), PROMPTS), LoadedEncoder)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantisation_is_refused_where_it_is_asked_for(clip: Path, quantization: str) -> None:
    with pytest.raises(SettingsError, match=f"'clip' model, which is not quantised; got .* {quantization}"):
        pretrained(on_cpu(clip, quantization=quantization), PROMPTS)


def test_adapting_such_a_model_is_refused(clip: Path) -> None:
    with pytest.raises(BackboneError, match="is a 'clip' model; expected one of qwen2_vl, "):
        Backbone(BackboneSettings.parse(model=str(clip)))


def test_another_architecture_is_refused_with_all_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    known = "qwen2_vl, .*, clip, siglip, siglip2"
    with pytest.raises(BackboneError, match=f"'bert' model; expected one of {known}"):
        pretrained(BackboneSettings.parse(model=str(tmp_path)), PROMPTS)


@pytest.mark.parametrize("missing", ["model.safetensors", "preprocessor_config.json"])
def test_an_incomplete_checkpoint_is_refused(copy_of_clip: Path, missing: str) -> None:
    if missing == "model.safetensors":  # pickled weights are never read
        torch.save(load_file(copy_of_clip / missing), copy_of_clip / "pytorch_model.bin")
    (copy_of_clip / missing).unlink()
    with pytest.raises(BackboneError, match="cannot be loaded: "):
        load_dual(copy_of_clip)


def test_half_a_model_is_refused(copy_of_clip: Path) -> None:
    weights = load_file(copy_of_clip / "model.safetensors")
    pictures = {name: value for name, value in weights.items() if not name.startswith("text_")}
    assert 0 < len(pictures) < len(weights)
    save_file(pictures, copy_of_clip / "model.safetensors", {"format": "pt"})
    lost = len(weights) - len(pictures)
    with pytest.raises(BackboneError, match=rf"lacks {lost} weights .*, text_model\."):
        load_dual(copy_of_clip)
