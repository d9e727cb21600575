"""Tiny CLIP and SigLIP checkpoints, and what their own forward pass makes of texts and pictures."""

import io
import json
import string
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPTokenizer,
    GemmaTokenizer,
    Siglip2ImageProcessorPil,
    Siglip2Tokenizer,
    SiglipImageProcessorPil,
    SiglipTokenizer,
)

# SigLIP 2 comes in two kinds: at a fixed size it is a SigLIP with another tokenizer, siglip2 keeps aspect ratios.
KINDS = ("clip", "siglip", "siglip2-fixed", "siglip2")
TEXT_LIMIT = {"clip": 77, "siglip": 64, "siglip2": 64}  # by model_type
WORDS = [
    "red cotton shirt",
    "steel kettle",
    "a very long walnut table",
    "Oak",
    "abcdefghijklmnopqrstuvwxyz0123456789",
]


def build_dual_model(folder: Path, kind: str, seed: int = 0) -> None:
    """Write a randomly initialised checkpoint with the files of a published one; `kind` is one of KINDS."""
    folder.mkdir(parents=True)
    tokenizer = {
        "clip": _clip_tokenizer,
        "siglip": _siglip_tokenizer,
        "siglip2-fixed": _gemma_tokenizer,
        "siglip2": partial(_gemma_tokenizer, kind=Siglip2Tokenizer),
    }[kind](folder)
    model_type = kind.removesuffix("2-fixed")
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = tower | ids | {"vocab_size": len(tokenizer)}
    vision = tower | {"patch_size": 8} | ({"num_patches": 16} if kind == "siglip2" else {"image_size": 32})
    if kind == "clip":
        sizes = {"text_config": text, "vision_config": vision | {"hidden_size": 48}, "projection_dim": 24}
    else:
        sizes = {"text_config": text | {"projection_size": 32}, "vision_config": vision}
    config = AutoConfig.for_model(model_type, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:  # the library's own small weights make all vectors alike
                torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    {
        "clip": lambda: CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square),
        "siglip": lambda: SiglipImageProcessorPil(size=square),
        "siglip2": lambda: Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
    }[model_type]().save_pretrained(folder)


def published_vectors(
    folder: Path, texts: Sequence[str], pictures: Iterable[Image]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What transformers' own forward pass gives as embeddings, one text and one picture at a time."""
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    kind = model.config.model_type
    padding = False if kind == "clip" else "max_length"
    made = []
    for text, picture in zip(texts, pictures, strict=True):
        tokens = tokenizer(
            [text], truncation=True, max_length=TEXT_LIMIT[kind], padding=padding, return_tensors="pt"
        )
        pixels = image_processor(images=[picture], return_tensors="pt")
        with torch.no_grad():
            output = model(input_ids=tokens["input_ids"], **pixels)
        made.append((output.text_embeds[0].numpy(), output.image_embeds[0].numpy()))
    text_vectors, image_vectors = zip(*made, strict=True)
    return np.stack(text_vectors), np.stack(image_vectors)


def _clip_tokenizer(folder: Path) -> CLIPTokenizer:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    # The control tokens come last, as in CLIP's vocabulary.
    for token in (*(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"):
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _siglip_tokenizer(folder: Path) -> SiglipTokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*WORDS, " ".join(WORDS[-1])] * 5),
        model_writer=model,
        vocab_size=80,
        hard_vocab_limit=False,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"))


def _gemma_tokenizer(folder: Path, kind: type = GemmaTokenizer) -> Any:
    """Every character a token."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *sorted(set(string.printable) - {" "})]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return kind(vocab=vocabulary, merges=[], add_bos_token=False, add_eos_token=True, padding_side="right")
