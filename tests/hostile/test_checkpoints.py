"""Checkpoints and base models that are damaged, foreign, or mean harm: one message each, nothing run."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sda_features.artifacts import sha256_files
from sda_features.errors import BackboneError, CheckpointError
from sda_features.lvlm.checkpoint import load_checkpoint
from sda_features.lvlm.weights import fingerprint

pytestmark = pytest.mark.fault
Damage = Callable[[Path], Any]


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(path, *names):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name not in names}))


def put(folder, name, tensors):
    """Replace a file and make the manifest agree, as somebody who means harm would."""
    save_file(tensors, folder / name)
    agree(folder, name)


def agree(folder, name):
    key = {"adapter.safetensors": "adapter", "rotation.safetensors": "rotation", "settings.json": "settings"}[
        name
    ]
    edit(folder / "manifest.json", **{f"{key}_sha256": sha256_files([folder / name])})


def orthogonal(size, seed=5):
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]).float()


def pickled(folder):
    (folder / "adapter.safetensors").write_bytes(pickle.dumps({"a": 1}))
    agree(folder, "adapter.safetensors")


CHECKPOINTS = {
    "adapter a folder": (lambda f: replace_by_folder(f / "adapter.safetensors"), "cannot be read"),
    "adapter a pickle": (lambda f: (f / "adapter.safetensors").write_bytes(pickle.dumps(1)), "match the hash"),
    "adapter a pickle, hash agrees": (pickled, "adapter.safetensors is damaged"),
    "adapter cut": (lambda f: cut(f / "adapter.safetensors"), "match the hash"),
    "adapter empty": (lambda f: (f / "adapter.safetensors").write_bytes(b""), "match the hash"),
    "adapter missing": (lambda f: (f / "adapter.safetensors").unlink(), "cannot be read"),
    "adapter flipped": (lambda f: flip(f / "adapter.safetensors"), "match the hash"),
    "adapter of another": (
        lambda f: put(f, "adapter.safetensors", {"x": torch.zeros(2)}),
        "does not fit its own settings",
    ),
    "adapter in a loop": (
        lambda f: ((f / "adapter.safetensors").unlink(), (f / "adapter.safetensors").symlink_to("adapter.safetensors")),
        "cannot be read",
    ),
    "manifest a list": (lambda f: (f / "manifest.json").write_text("[]"), "expected a JSON object"),
    "manifest a number": (lambda f: (f / "manifest.json").write_text("1"), "expected a JSON object"),
    "manifest null": (lambda f: (f / "manifest.json").write_text("null"), "expected a JSON object"),
    "manifest deep": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "is damaged"),
    "manifest latin-1": (lambda f: (f / "manifest.json").write_bytes(b'{"a": "\xe9"}'), "is damaged"),
    "manifest empty": (lambda f: (f / "manifest.json").write_text(""), "is damaged"),
    "manifest a folder": (lambda f: replace_by_folder(f / "manifest.json"), "cannot be read"),
    "manifest missing": (lambda f: (f / "manifest.json").unlink(), "is not a checkpoint"),
    "manifest without hashes": (lambda f: without(f / "manifest.json", "adapter_sha256"), "hashes are missing"),
    "manifest, base a list": (lambda f: edit(f / "manifest.json", base_model=[]), "hashes are missing"),
    "format of old": (lambda f: edit(f / "manifest.json", format=1), "checkpoint format 1"),
    "format of the future": (lambda f: edit(f / "manifest.json", format="7"), "checkpoint format '7'"),
    "settings edited": (lambda f: edit(f / "settings.json", adapter={"alpha": 1}), "match the hash"),
    "settings a list": (lambda f: (f / "settings.json").write_text("[]"), "is damaged"),
    "settings of the future": (lambda f: edit(f / "settings.json", new=1), "is damaged"),
    "settings a folder": (lambda f: replace_by_folder(f / "settings.json"), "cannot be read"),
    "preprocessing a list": (lambda f: (f / "preprocessing.json").write_text("[]"), "is not the one that"),
    "preprocessing missing": (lambda f: (f / "preprocessing.json").unlink(), "has no preprocessing.json"),
    "rotation another": (
        lambda f: save_file({"rotation": orthogonal(64)}, f / "rotation.safetensors"), "match the hash"
    ),
    "rotation a folder": (lambda f: replace_by_folder(f / "rotation.safetensors"), "cannot be read"),
    "rotation cut": (lambda f: cut(f / "rotation.safetensors"), "match the hash"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_damaged_checkpoint_is_refused_with_a_reason(copied, tmp_path, fails, kind):
    damage, reason = CHECKPOINTS[kind]
    damage(copied)
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
    put(copied, "rotation.safetensors", tensors)
    with pytest.raises(CheckpointError, match=reason):
        load_checkpoint(copied, 8)


def test_everything_that_vectors_depend_on_is_in_the_version(copied, checkpoint):
    put(copied, "rotation.safetensors", {"rotation": orthogonal(64)})
    assert load_checkpoint(copied, 8).version != load_checkpoint(checkpoint, 8).version
    assert load_checkpoint(copied).version == load_checkpoint(checkpoint).version, "no --dim, no rotation"
    settings = json.loads((copied / "settings.json").read_text())
    edit(copied / "settings.json", adapter=settings["adapter"] | {"alpha": 16.0})
    agree(copied, "settings.json")
    assert load_checkpoint(copied).version != load_checkpoint(checkpoint).version
    edit(copied / "settings.json", adapter=settings["adapter"], projection={"kind": "pooled", "dim": 32})
    agree(copied, "settings.json")
    assert load_checkpoint(copied).version != load_checkpoint(checkpoint).version


def is_model(path):
    return path / "model.safetensors"


def tokenizer_without_template(folder):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    without(folder / "tokenizer_config.json", "chat_template")


def lacking(folder):
    tensors = load_file(is_model(folder))
    name = next(name for name in tensors if "q_proj" in name)
    save_file(
        {key: value for key, value in tensors.items() if key != name}, is_model(folder), {"format": "pt"}
    )


def swap_adapter(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")


def run_folder(folder):
    shutil.rmtree(folder)
    (folder / "checkpoint").mkdir(parents=True)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
MODELS = {
    "weights a git-lfs pointer": (lambda f: is_model(f).write_text(LFS), "is a git-lfs pointer"),
    "weights cut": (lambda f: cut(is_model(f)), "cut off or damaged"),
    "weights empty": (lambda f: is_model(f).write_bytes(b""), "cut off"),
    "weights garbage": (lambda f: is_model(f).write_bytes(os.urandom(5000)), "cut off"),
    "weights a folder": (lambda f: replace_by_folder(is_model(f)), "lacks model.safetensors"),
    "weights missing": (lambda f: is_model(f).unlink(), "found none"),
    "weights a pickle": (lambda f: is_model(f).rename(f / "pytorch_model.bin"), "reading them can run code"),
    "a tensor missing": (lacking, "lacks 1 weights of the model"),
    "a shard missing": (
        lambda f: ((f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
                   is_model(f).unlink()),
        "lacks b.safetensors",
    ),
    "index a list": (
        lambda f: ((f / "model.safetensors.index.json").write_text("[]"), is_model(f).unlink()), "cannot be read"
    ),
    "config missing": (lambda f: (f / "config.json").unlink(), "No model at"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "is damaged"),
    "config cut": (lambda f: cut(f / "config.json"), "is damaged"),
    "config latin-1": (lambda f: (f / "config.json").write_bytes(b'{"model_type": "\xe9"}'), "is damaged"),
    "config of BERT": (lambda f: edit(f / "config.json", model_type="bert"), "expected one of qwen2_vl"),
    "config of nothing": (lambda f: without(f / "config.json", "model_type"), "cannot be used"),
    "AWQ": (lambda f: edit(f / "config.json", quantization_config={"quant_method": "awq"}), "already (awq)"),
    "GPTQ": (lambda f: edit(f / "config.json", quantization_config={"quant_method": "gptq"}), "already (gptq)"),
    "adapter folder": (swap_adapter, "is no base model but a PEFT adapter"),
    "run folder": (run_folder, "give its checkpoint/ with --checkpoint"),
    "tokenizer missing": (
        lambda f: [path.unlink() for path in f.glob("*token*")] + [(f / "chat_template.jinja").unlink(True)],
        "has no tokenizer",
    ),
    "tokenizer garbage": (lambda f: (f / "tokenizer.json").write_text("{"), "The tokenizer of"),
    "no chat template": (tokenizer_without_template, "no chat template"),
    "processor missing": (lambda f: (f / "preprocessor_config.json").unlink(), "The image processor of"),
    "processor garbage": (lambda f: (f / "preprocessor_config.json").write_text("[1"), "The image processor of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_a_damaged_base_model_is_refused_with_a_reason(model, catalogue, tmp_path, fails, kind):
    damage, reason = MODELS[kind]
    damage(model)
    found = fails(
        "adapt", catalogue, "--model", model, "-o", tmp_path / "run", "--max-bad-rows", 1, "--steps", 1
    )
    assert reason in found, found
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_the_same_weights_in_shards_are_the_same_model(model):
    before = fingerprint(str(model))
    tensors = load_file(is_model(model))
    names = sorted(tensors)
    shards = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, model / file, {"format": "pt"})
    is_model(model).unlink()
    weight_map = {name: file for file, held in shards.items() for name in held}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    edit(model / "config.json", transformers_version="9.9")
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
    edit(model / "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})


@pytest.mark.parametrize("verb", ["export", "diagnose", "materialize"])
def test_code_of_a_model_runs_on_this_commands_word_alone(copied, model, catalogue, tmp_path, fails, verb):
    marker = tmp_path / "marker"
    settings = json.loads((copied / "settings.json").read_text())
    edit(
        copied / "settings.json",
        backbone=settings["backbone"] | {"trust_remote_code": True, "model": str(model)},
    )
    agree(copied, "settings.json")
    with_code(model, marker)
    # The hash of the model is another one now, and is compared before anything of it is loaded.
    with pytest.raises(CheckpointError, match="Give the right one with --model"):
        load_checkpoint(copied, trust_remote_code=True)
    assert not marker.exists()
    # With the hash made to agree, the stored flag still does not count.
    edit(copied / "manifest.json", base_model={"name": str(model), "sha256": fingerprint(str(model))})
    arguments = {
        "export": ["export", copied, "-o", tmp_path / "export"],
        "diagnose": ["diagnose", copied, "--catalog", catalogue, "--max-bad-rows", 1, "--items", 2],
        "materialize": ["materialize", catalogue, "--checkpoint", copied, "--repo", tmp_path],
    }[verb]
    if verb == "materialize":  # a repo would be needed: its loader is what counts
        from sda_features.api.encoders import load_encoder

        load_encoder(copied, None, {}, "sda")
    else:
        from sda_features.cli.main import main

        main([str(argument) for argument in arguments])
    assert not marker.exists()


def test_the_test_of_code_is_not_vacuous(model, tmp_path):
    from sda_features.config import BackboneSettings
    from sda_features.lvlm.loading import load_config

    with_code(model, tmp_path / "marker")
    settings = BackboneSettings(model=str(model), trust_remote_code=True)
    load_config(settings, ("qwen2_5_vl",))
    assert (tmp_path / "marker").exists()


def test_what_is_no_model_is_told(tmp_path):
    with pytest.raises(BackboneError, match="No model at"):
        fingerprint(str(tmp_path / "nothing"))
