"""Checkpoints and base models that are damaged, foreign, or mean harm: one message each, nothing run."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sda_features.api.encoders import load_encoder
from sda_features.artifacts import sha256_files
from sda_features.cli.main import main
from sda_features.config import BackboneSettings
from sda_features.errors import BackboneError, CheckpointError
from sda_features.lvlm.checkpoint import load_checkpoint
from sda_features.lvlm.loading import load_config
from sda_features.lvlm.weights import fingerprint
from tests.hostile.damage import GIT_LFS, cut, damage, flip, replace_by_folder, replace_by_link, without

pytestmark = pytest.mark.fault
ADAPTER, ROTATION, PREPROCESSING = "adapter.safetensors", "rotation.safetensors", "preprocessing.json"
MANIFEST, SETTINGS, CONFIG, WEIGHTS = "manifest.json", "settings.json", "config.json", "model.safetensors"


def agree(path):
    """Make the manifest agree, as somebody who means harm would."""
    damage(path.with_name(MANIFEST), {f"{path.stem}_sha256": sha256_files([path])})


def orthogonal(size, seed=5):
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]).float()


def pickled(path):
    path.write_bytes(pickle.dumps({"a": 1}))
    agree(path)


def of_another(path):
    save_file({"x": torch.zeros(2)}, path)
    agree(path)


CHECKPOINTS = {
    "adapter a folder": (ADAPTER, replace_by_folder, "cannot be read"),
    "adapter a pickle": (ADAPTER, pickle.dumps(1), "match the hash"),
    "adapter a pickle, hash agrees": (ADAPTER, pickled, "adapter.safetensors is damaged"),
    "adapter cut": (ADAPTER, cut, "match the hash"),
    "adapter empty": (ADAPTER, b"", "match the hash"),
    "adapter missing": (ADAPTER, None, "cannot be read"),
    "adapter flipped": (ADAPTER, flip, "match the hash"),
    "adapter of another": (ADAPTER, of_another, "does not fit its own settings"),
    "adapter in a loop": (ADAPTER, lambda path: replace_by_link(path, path.name), "cannot be read"),
    "manifest a list": (MANIFEST, b"[]", "expected a JSON object"),
    "manifest a number": (MANIFEST, b"1", "expected a JSON object"),
    "manifest null": (MANIFEST, b"null", "expected a JSON object"),
    "manifest deep": (MANIFEST, b"[" * 100_000, "is damaged"),
    "manifest latin-1": (MANIFEST, b'{"a": "\xe9"}', "is damaged"),
    "manifest empty": (MANIFEST, b"", "is damaged"),
    "manifest a folder": (MANIFEST, replace_by_folder, "cannot be read"),
    "manifest missing": (MANIFEST, None, "is not a checkpoint"),
    "manifest without hashes": (MANIFEST, lambda path: without(path, "adapter_sha256"), "hashes are missing"),
    "manifest, base a list": (MANIFEST, {"base_model": []}, "hashes are missing"),
    "format of old": (MANIFEST, {"format": 1}, "checkpoint format 1"),
    "format of the future": (MANIFEST, {"format": "7"}, "checkpoint format '7'"),
    "settings edited": (SETTINGS, {"adapter": {"alpha": 1}}, "match the hash"),
    "settings a list": (SETTINGS, b"[]", "is damaged"),
    "settings of the future": (SETTINGS, {"new": 1}, "is damaged"),
    "settings a folder": (SETTINGS, replace_by_folder, "cannot be read"),
    "preprocessing a list": (PREPROCESSING, b"[]", "is not the one that"),
    "preprocessing missing": (PREPROCESSING, None, "has no preprocessing.json"),
    "rotation another": (
        ROTATION,
        lambda path: save_file({"rotation": orthogonal(64)}, path),
        "match the hash",
    ),
    "rotation a folder": (ROTATION, replace_by_folder, "cannot be read"),
    "rotation cut": (ROTATION, cut, "match the hash"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused_with_a_reason(copied, tmp_path, fails, kind):
    file, how, reason = CHECKPOINTS[kind]
    damage(copied / file, how)
    assert reason in fails("export", copied, "-o", tmp_path / "export")
    assert not (tmp_path / "export").exists()


ROTATIONS = {
    "7 x 7": ({"rotation": torch.eye(7)}, "expected a finite matrix with 64 rows"),
    "NaN": ({"rotation": torch.full((64, 64), torch.nan)}, "expected a finite matrix"),
    "a vector": ({"rotation": torch.zeros(64)}, "expected a finite matrix"),
    "another name": ({"r": torch.eye(64)}, "is damaged"),
}


@pytest.mark.parametrize("kind", ROTATIONS)
def test_a_rotation_that_does_not_fit_is_refused_though_its_hash_agrees(copied, kind):
    tensors, reason = ROTATIONS[kind]
    save_file(tensors, copied / ROTATION)
    agree(copied / ROTATION)
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(copied, 8)


def test_everything_that_vectors_depend_on_is_in_the_version(copied, checkpoint):
    save_file({"rotation": orthogonal(64)}, copied / ROTATION)
    agree(copied / ROTATION)
    assert load_checkpoint(copied, 8).version != load_checkpoint(checkpoint, 8).version
    assert load_checkpoint(copied).version == load_checkpoint(checkpoint).version, "no --dim, no rotation"
    adapter = json.loads((copied / SETTINGS).read_text())["adapter"]
    for changes in (
        {"adapter": adapter | {"alpha": 16.0}},
        {"adapter": adapter, "projection": {"kind": "pooled", "dim": 32}},
    ):
        damage(copied / SETTINGS, changes)
        agree(copied / SETTINGS)
        assert load_checkpoint(copied).version != load_checkpoint(checkpoint).version


def without_template(config):
    (config.parent / "chat_template.jinja").unlink(missing_ok=True)
    without(config, "chat_template")


def without_tokenizer(folder):
    for path in [*folder.glob("*token*"), folder / "chat_template.jinja"]:
        path.unlink(missing_ok=True)


def lacking(path):
    tensors = load_file(path)
    tensors.pop(next(name for name in tensors if "q_proj" in name))
    save_file(tensors, path, {"format": "pt"})


def only_index(content):
    """An index of shards in the place of the weights."""

    def replace(path):
        path.rename(path.with_name("model.safetensors.index.json")).write_text(content)

    return replace


def as_pickle(path):
    path.rename(path.with_name("pytorch_model.bin"))


def swap_adapter(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")


def run_folder(folder):
    shutil.rmtree(folder)
    (folder / "checkpoint").mkdir(parents=True)


MODELS = {
    "weights a git-lfs pointer": (WEIGHTS, GIT_LFS, "is a git-lfs pointer"),
    "weights cut": (WEIGHTS, cut, "cut off or damaged"),
    "weights empty": (WEIGHTS, b"", "cut off"),
    "weights garbage": (WEIGHTS, os.urandom(5000), "cut off"),
    "weights a folder": (WEIGHTS, replace_by_folder, "lacks model.safetensors"),
    "weights missing": (WEIGHTS, None, "found none"),
    "weights a pickle": (WEIGHTS, as_pickle, "reading them can run code"),
    "a tensor missing": (WEIGHTS, lacking, "lacks 1 weights of the model"),
    "a shard missing": (WEIGHTS, only_index('{"weight_map": {"a": "b.safetensors"}}'), "lacks b.safetensors"),
    "index a list": (WEIGHTS, only_index("[]"), "cannot be read"),
    "config missing": (CONFIG, None, "No model at"),
    "config a list": (CONFIG, b"[]", "is damaged"),
    "config cut": (CONFIG, cut, "is damaged"),
    "config latin-1": (CONFIG, b'{"model_type": "\xe9"}', "is damaged"),
    "config of BERT": (CONFIG, {"model_type": "bert"}, "expected one of qwen2_vl"),
    "config of nothing": (CONFIG, lambda path: without(path, "model_type"), "cannot be used"),
    "AWQ": (CONFIG, {"quantization_config": {"quant_method": "awq"}}, "already (awq)"),
    "GPTQ": (CONFIG, {"quantization_config": {"quant_method": "gptq"}}, "already (gptq)"),
    "adapter folder": ("", swap_adapter, "is no base model but a PEFT adapter"),
    "run folder": ("", run_folder, "give its checkpoint/ with --checkpoint"),
    "tokenizer missing": ("", without_tokenizer, "has no tokenizer"),
    "tokenizer garbage": ("tokenizer.json", b"{", "The tokenizer of"),
    "no chat template": ("tokenizer_config.json", without_template, "no chat template"),
    "processor missing": ("preprocessor_config.json", None, "The image processor of"),
    "processor garbage": ("preprocessor_config.json", b"[1", "The image processor of"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_damaged_base_model_is_refused_with_a_reason(model, catalogue, tmp_path, fails, kind):
    file, how, reason = MODELS[kind]
    damage(model / file, how)
    found = fails(
        "adapt", catalogue, "--model", model, "-o", tmp_path / "run", "--max-bad-rows", 1, "--steps", 1
    )
    assert reason in found, found
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_the_same_weights_in_shards_are_the_same_model(model):
    before = fingerprint(str(model))
    tensors = load_file(model / WEIGHTS)
    names = sorted(tensors)
    shards = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, model / file, {"format": "pt"})
    (model / WEIGHTS).unlink()
    weight_map = {name: file for file, held in shards.items() for name in held}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    damage(model / CONFIG, {"transformers_version": "9.9"})
    assert fingerprint(str(model)) == before
    flip(model / "model-2-of-2.safetensors")
    assert fingerprint(str(model)) != before


CODE = """
import pathlib
pathlib.Path({marker!r}).write_text("run")
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel
class Config(Qwen2_5_VLConfig): pass  # of its own: transformers marks the class
class Model(Qwen2_5_VLModel): pass
"""


def with_code(model, marker):
    (model / "evil.py").write_text(CODE.format(marker=str(marker)))
    damage(model / CONFIG, {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}})


@pytest.mark.parametrize("verb", ["export", "diagnose", "materialize"])
def test_code_of_a_model_runs_on_this_commands_word_alone(copied, model, catalogue, tmp_path, verb):
    marker = tmp_path / "marker"
    backbone = json.loads((copied / SETTINGS).read_text())["backbone"]
    damage(copied / SETTINGS, {"backbone": backbone | {"trust_remote_code": True, "model": str(model)}})
    agree(copied / SETTINGS)
    with_code(model, marker)
    # The hash of the model is another one now, and is compared before anything of it is loaded.
    with pytest.raises(CheckpointError, match="Give the right one with --model"):
        load_checkpoint(copied, trust_remote_code=True)
    assert not marker.exists()
    # With the hash made to agree, the stored flag still does not count.
    damage(copied / MANIFEST, {"base_model": {"name": str(model), "sha256": fingerprint(str(model))}})
    if verb == "materialize":  # a repo would be needed: its loader is what counts
        load_encoder(copied, None, {}, "sda")
    else:
        arguments = {
            "export": [copied, "-o", tmp_path / "export"],
            "diagnose": [copied, "--catalog", catalogue, "--max-bad-rows", 1, "--items", 2],
        }
        main([str(argument) for argument in [verb, *arguments[verb]]])
    assert not marker.exists()


def test_the_test_of_code_is_not_vacuous(model, tmp_path):
    with_code(model, tmp_path / "marker")
    settings = BackboneSettings(model=str(model), trust_remote_code=True)
    load_config(settings, ("qwen2_5_vl",))
    assert (tmp_path / "marker").exists()


def test_what_is_no_model_is_told(tmp_path):
    with pytest.raises(BackboneError, match="No model at"):
        fingerprint(str(tmp_path / "nothing"))
