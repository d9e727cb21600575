"""SASRec of RecBole 1.2.1 on request; runs in RecBole's own environment and imports nothing of ours.

recbole_worker.py FOLDER LOSS THREADS

FOLDER holds `log/log.inter`; LOSS is BPR or CE. Each line on standard input is a JSON request, and
each answer is one JSON line on standard output:
  {"do": "train", "batches": n}: n batches, or all with null, through `Trainer._train_epoch`;
  {"do": "evaluate", "batch": b}: `Trainer.evaluate` on the test users, b users at a time;
  {"do": "export", "path": p}: item table, user states and user ids to a .npz file.

RecBole imports ray for its hyper-parameter search alone and thop to count operations alone; neither
is reached from the modules used here.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time

import numpy as np
import torch

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what RecBole prints must not mix with the answers

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.data.utils import get_dataloader  # noqa: E402
from recbole.model.sequential_recommender import SASRec  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import init_seed  # noqa: E402


def configuration(folder: str, loss: str) -> Config:
    """Sizes of our SASRec; everything else as RecBole has it."""
    values = {
        "data_path": folder,
        "checkpoint_dir": folder,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 50,
        "hidden_size": 50,
        "inner_size": 50,
        "n_layers": 2,
        "n_heads": 1,
        "hidden_act": "relu",
        "loss_type": loss,
        "use_gpu": False,
        "show_progress": False,
        "metrics": ["Hit", "NDCG"],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 8,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    }
    if loss == "CE":
        values["train_neg_sample_args"] = None
    return Config(model="SASRec", dataset="log", config_dict=values)


def main() -> None:
    """Answer until standard input ends."""
    folder, loss, threads = sys.argv[1:]
    sys.argv = sys.argv[:1]  # RecBole reads it
    os.chdir(folder)  # it writes logs where it runs
    torch.set_num_threads(int(threads))
    config = configuration(folder, loss)
    init_seed(config["seed"], config["reproducibility"])
    train, _, test = data_preparation(config, create_dataset(config))
    torch.set_num_threads(int(threads))
    model = SASRec(config, train._dataset)
    trainer = Trainer(config, model)
    trainer.eval_collector.data_collect(train)
    loaders = {config["eval_batch_size"]: test}
    answer({"samples": len(train._dataset), "batches": len(train), "users": len(test._dataset)})
    for line in sys.stdin:
        request = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        values = {}
        if request["do"] == "train":
            trainer._train_epoch(itertools.islice(train, request["batches"]), 0)
        elif request["do"] == "evaluate":
            size = request["batch"]
            if size not in loaders:
                config["eval_batch_size"] = size
                loaders[size] = get_dataloader(config, "test")(
                    config, test._dataset, test._sampler, shuffle=False
                )
                wall, cpu = time.perf_counter(), time.process_time()
            values = dict(trainer.evaluate(loaders[size], load_best_model=False))
        else:
            export(model, test, request["path"])
        answer({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **values})


def answer(content: dict) -> None:
    """One line."""
    ANSWERS.write(json.dumps(content, default=float) + "\n")
    ANSWERS.flush()


def export(model: SASRec, test, path: str) -> None:
    """`items` [I + 1], `table` [I + 1, d], `users` [T] and `states` [T, d]; ids are integers, padding is 0."""
    dataset, users, states = test._dataset, [], []
    model.eval()
    with torch.no_grad():
        for interaction, *_ in test:
            users += list(dataset.id2token("user_id", interaction["user_id"]))
            states.append(model(interaction["item_id_list"], interaction["item_length"]))
    items = [0, *map(int, dataset.field2id_token["item_id"][1:])]
    table = model.item_embedding.weight.detach().numpy()
    np.savez(path, items=items, table=table, users=[int(u) for u in users], states=torch.cat(states).numpy())


if __name__ == "__main__":
    main()
