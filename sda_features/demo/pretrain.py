"""The little schooling of the demo's base model: sight and reading, never together.

A randomly initialised model maps every input to nearly the same vector, so there would be nothing
to align. A published vision-language model knows shapes, colours and words, yet its mean-pooled
picture vectors and text vectors lie in unrelated directions. This module imitates that starting
point: the model learns, on products of another generated shop, to tell the factors that a text
names from the text's pooled state, and the factors that a picture shows from the picture's pooled
state. The classifiers of the two modalities are separate and are thrown away, no loss compares a
text with a picture, and a step never holds a picture and a text of the same product.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from sda_features.artifacts import atomic_folder
from sda_features.catalog.prompts import text_prompt
from sda_features.config import MODALITIES, BackboneSettings, PromptSettings
from sda_features.demo.catalogue import Catalogue, make_catalogue, text_fields
from sda_features.demo.factors import FACTORS, columns_shown_in
from sda_features.lvlm.backbone import Backbone, Prompt, mean_pool


def pretrain(
    folder: Path,
    *,
    seed: int = 0,
    items: int = 900,
    steps: int = 120,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
) -> dict[str, float]:
    """Teach the checkpoint in `folder` each modality by itself and write it back.

    Minimised, with z_m = mean-pooled last state of one product's prompt of modality m, W_mf and b_mf a
    linear classifier, and y_f the level of factor f:

        sum_m mean_{f shown in m} CE(W_mf z_m + b_mf, y_f)

    Args:
        folder: checkpoint made by `build_tiny_model`; its weights are replaced.
        seed: decides products, order and classifiers; the shop's own items (seed as in
            `make_catalogue`) are not among them.
        items: products to learn from.
        steps: optimiser steps; a step takes `batch_size` texts and as many pictures.
        batch_size: see steps.
        learning_rate: peak of a one-cycle schedule.

    Returns:
        modality -> share of factor levels told right in the last tenth of the steps.
    """
    backbone = Backbone(
        BackboneSettings(model=str(folder), quantization="none", dtype="float32", device="cpu")
    )
    lessons = make_catalogue(items, seed=seed + 1_000_003, spoil=False)
    prompts = {"text": _text_prompts(backbone, lessons), "image": _image_prompts(backbone, lessons)}
    columns = {modality: columns_shown_in(modality) for modality in MODALITIES}
    rng = np.random.default_rng([seed, 3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.ModuleDict(
            {
                modality: nn.ModuleList(
                    nn.Linear(backbone.hidden_size, len(FACTORS[column].levels))
                    for column in columns[modality]
                )
                for modality in MODALITIES
            }
        )
    parameters = [*backbone.model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    right: dict[str, list[float]] = {modality: [] for modality in MODALITIES}
    for _ in range(steps):
        picks = np.array_split(rng.choice(items, 2 * batch_size, replace=False), 2)
        optimizer.zero_grad()
        for modality, rows in zip(MODALITIES, picks, strict=True):
            batch = backbone.collate([prompts[modality][row] for row in rows], modality)
            pooled = mean_pool(backbone.hidden_states(batch), batch.lengths)
            levels = torch.from_numpy(lessons.factors[rows][:, columns[modality]])
            loss, share = _tell_factors(pooled, heads[modality], levels)
            loss.backward()  # type: ignore[no-untyped-call]
            right[modality].append(share)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    whole = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    whole.model.load_state_dict(backbone.model.state_dict())
    with atomic_folder(folder) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        whole.save_pretrained(temporary)
    return {modality: float(np.mean(shares[-max(1, steps // 10) :])) for modality, shares in right.items()}


def _tell_factors(pooled: Tensor, heads: nn.Module, levels: Tensor) -> tuple[Tensor, float]:
    """Mean cross-entropy over factors, and the share of `levels`, int64 [B, factors], told right."""
    losses, shares = [], []
    for head, target in zip(heads.children(), levels.T, strict=True):
        logits = head(pooled)
        losses.append(F.cross_entropy(logits, target))
        shares.append(float((logits.argmax(1) == target).float().mean()))
    return torch.stack(losses).mean(), float(np.mean(shares))


def _text_prompts(backbone: Backbone, catalogue: Catalogue) -> list[Prompt]:
    settings = PromptSettings()
    prompts = [text_prompt(fields, settings) for fields in text_fields(catalogue)]
    return [backbone.text_tokens(prompt) for prompt in prompts if prompt is not None]


def _image_prompts(backbone: Backbone, catalogue: Catalogue) -> list[Prompt]:
    settings = PromptSettings()
    pictures = [Image.open(io.BytesIO(encoded)) for encoded in catalogue.table["image"].to_pylist()]
    return [backbone.image_tokens(picture, settings) for picture in pictures]
