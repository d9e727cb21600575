"""The parts of gpu.py that ask whether numbers are the same, and recommenders; on tiny models."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import median, take_turns
from PIL import Image
from rivals.epochs import epoch
from safetensors.torch import load_file
from shapes import write_folder

from sda_features.catalog.rows import Catalog
from sda_features.config import AdaptSettings, recommender_settings
from sda_features.logs.interactions import Interactions, index_interactions
from sda_features.lvlm.finetune import finetune

if TYPE_CHECKING:
    from gpu import Run

STEPS, KILLED_AFTER = 8, 5
TEXTS = ["title is a cotton shirt", "title is a walnut table", "number"]


def resume_equality(run: Run) -> None:
    """A run that is killed and goes on ends in the weights of one that was not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = small_run(folder, str(run.device))
        whole = finetune(settings, Catalog(settings.catalog), folder / "whole", progress=False).checkpoint
        child = multiprocessing.get_context("spawn").Process(
            target=adapt_once, args=(folder, str(run.device))
        )
        child.start()
        log = folder / "broken" / "training_log.jsonl"
        while child.is_alive() and not (log.exists() and len(log.read_text().splitlines()) >= KILLED_AFTER):
            time.sleep(0.005)
        if child.is_alive() and child.pid:
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        killed = not (folder / "broken" / "checkpoint").exists()
        broken = finetune(
            settings, Catalog(settings.catalog), folder / "broken", False, resume=True
        ).checkpoint
        first, second = (load_file(of / "adapter.safetensors") for of in (whole, broken))
        largest = max(float((first[key] - second[key]).abs().max()) for key in first)
    run.row(
        "killed and resumed" if killed else "ended before it was killed, and resumed",
        f"largest difference of a weight {largest:.1e}",
        resume_difference=largest,
        resume_killed=killed,
    )


def adapt_once(folder: Path, device: str) -> None:
    """The run that is killed, slowed down so that it does not end before."""
    settings = small_run(folder, device)
    finetune(settings, Catalog(settings.catalog), folder / "broken", progress=False)


def small_run(folder: Path, device: str) -> AdaptSettings:
    """A run of some steps; made anew with the same contents wherever it is needed."""
    catalogue, model = folder / "items.parquet", folder / "small"
    if not catalogue.exists():
        write_folder(model, "tiny", TEXTS)
        pq.write_table(pa.Table.from_pylist(list(map(_item, range(16)))), catalogue)
    train = {
        "steps": STEPS,
        "batch_size": 8,
        "micro_batch_size": 4,
        "save_every": 2,
        "warmup_steps": 1,
        "learning_rate": 1e-2,
        "validation_share": 0.0,
        "deterministic": True,
        "gradient_checkpointing": False,
    }
    backbone = {"model": str(model), "quantization": "none", "device": device, "dtype": "float32"}
    return AdaptSettings.parse(catalog={"path": catalogue}, backbone=backbone, train=train)


def _item(number: int) -> dict[str, Any]:
    pixels = np.random.default_rng(number).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"item_id": str(number), "title": f"{TEXTS[number % 3]} {number}", "image": stream.getvalue()}


def export_equality(run: Run) -> None:
    """Vectors of an exported LoRA in stock PEFT against those of the checkpoint."""
    from peft import PeftModel
    from transformers import AutoModel

    from sda_features.lvlm.backbone import mean_pool
    from sda_features.lvlm.checkpoint import load_checkpoint
    from sda_features.lvlm.export import export_checkpoint

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = small_run(folder, str(run.device))
        checkpoint = finetune(settings, Catalog(settings.catalog), folder / "run", progress=False).checkpoint
        exported = export_checkpoint(checkpoint, folder / "exported", "base").adapters["text"]
        loaded = load_checkpoint(checkpoint)
        base = AutoModel.from_pretrained(settings.backbone.model, dtype=torch.float32).to(run.device)
        stock = PeftModel.from_pretrained(base, str(exported)).eval()
        batch = loaded.collate([loaded.text_tokens(text) for text in TEXTS[:1] * 3], "text")
        moved = batch.to(run.device)
        with torch.inference_mode():
            ours = loaded.vectors(batch)
            states = stock(input_ids=moved.input_ids, use_cache=False).last_hidden_state
            theirs = torch.nn.functional.normalize(mean_pool(states, moved.lengths), dim=1)
        distance = float((1 - (ours * theirs).sum(1)).abs().max())
    run.row("exported adapter in PEFT", f"cosine distance {distance:.1e}", export_distance=distance)


def recommender_epochs(run: Run) -> None:
    """An epoch of SASRec and of BERT4Rec on the device against the CPU."""
    from sda_features.logs.splits import leave_one_out
    from sda_features.recommenders.bert4rec import BERT4Rec
    from sda_features.recommenders.sasrec import SASRec

    split = leave_one_out(generated_log(60 if run.tiny else 5000))
    for kind, name in ((SASRec, "sasrec"), (BERT4Rec, "bert4rec")):
        seconds = {}
        for device in dict.fromkeys((torch.device("cpu"), run.device)):
            model: Any = kind.build(split.train, recommender_settings(name, "sparse"), None).to(device)  # type: ignore[attr-defined]

            def job(model: Any = model) -> None:
                epoch(model, split, model.loss)
                run.wait()

            seconds[device.type] = median(take_turns({name: job}, rounds=1, warmup=1)[name])
        spent = ", ".join(f"{device} {of:.2f} s" for device, of in seconds.items())
        run.row(f"epoch of {name}", spent, **{name: seconds})


def generated_log(users: int) -> Interactions:
    """Users with 5 to 40 items of 2,000."""
    random, items = np.random.default_rng(0), 2000
    lengths = random.integers(5, 41, users)
    chosen = np.concatenate([random.choice(items, n, replace=False) for n in lengths])
    return index_interactions(
        np.repeat(np.arange(users), lengths), chosen, catalogue=[str(n) for n in range(items)]
    )
