"""SASRec of RecBole 1.2.1 on request; runs in RecBole's own environment and imports nothing of ours.

recbole_worker.py FOLDER THREADS

FOLDER holds `log/log.inter`. The first answer is the number of samples, users and items. Then each line
on standard input is a JSON request, and each answer is one JSON line on standard output:
  {"do": "train", "loss": "BPR" or "CE", "size": b, "batches": n}: n batches of b samples in
      `Trainer._train_epoch`. The epoch's shuffling and one more batch come first and are not timed;
  {"do": "evaluate", "size": b, "cutoff": k}: `Trainer.evaluate` on the test users, b users at a time;
  {"do": "export", "path": p}: item table, user states and ids to a .npz file.

Nothing of RecBole is changed or replaced, but autograd's anomaly detection is off: RecBole's package of
sequential models switches it on when it is imported (in sine.py, for every model), which costs time.
Its quick_start alone imports ray, for hyper-parameter search, and is not used.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from functools import cache

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


def configuration(folder: str, loss: str, cutoff: int = 10) -> Config:
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
        "topk": [cutoff],
        "valid_metric": f"NDCG@{cutoff}",
        "metric_decimal_place": 8,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    }
    if loss == "CE":
        values["train_neg_sample_args"] = None
    return Config(model="SASRec", dataset="log", config_dict=values)


class Worker:
    """One data set and a trainer for each loss."""

    def __init__(self, folder: str) -> None:
        self.configs = {loss: configuration(folder, loss) for loss in ("BPR", "CE")}
        config = self.configs["BPR"]
        init_seed(config["seed"], config["reproducibility"])
        self.train_data, _, self.test_data = data_preparation(config, create_dataset(config))
        self.models = {loss: SASRec(own, self.train_data._dataset) for loss, own in self.configs.items()}
        self.trainers = {loss: Trainer(self.configs[loss], model) for loss, model in self.models.items()}
        self.folder = folder

    def sizes(self) -> dict:
        """What an epoch and an evaluation hold."""
        dataset = self.train_data._dataset
        return {
            "samples": len(dataset),
            "users": len(self.test_data._dataset),
            "items": dataset.item_num - 1,
        }

    @cache  # noqa: B019, one worker a process
    def loader(self, phase: str, loss: str, size: int):
        """RecBole's loader with a batch size of our choice."""
        config, made = self.configs[loss], self.train_data if phase == "train" else self.test_data
        config[f"{'train' if phase == 'train' else 'eval'}_batch_size"] = size
        shuffle = phase == "train"
        return get_dataloader(config, phase)(config, made._dataset, made._sampler, shuffle=shuffle)

    def train(self, loss: str, size: int, batches: int) -> dict:
        """Some batches in the trainer's loop, and how many samples they held."""
        stream, counts = iter(self.loader("train", loss, size)), []
        next(stream)  # shuffles

        def counted():
            for batch in itertools.islice(stream, batches):
                counts.append(len(batch))
                yield batch

        return timed(lambda: self.trainers[loss]._train_epoch(counted(), 0)) | {"samples": sum(counts)}

    @cache  # noqa: B019
    def evaluator(self, cutoff: int) -> Trainer:
        """A trainer of the model that BPR trains, with a cut-off of its own."""
        trainer = Trainer(configuration(self.folder, "BPR", cutoff), self.models["BPR"])
        trainer.eval_collector.data_collect(self.train_data)
        return trainer

    def evaluate(self, size: int, cutoff: int) -> dict:
        """Hit@k and NDCG@k."""
        trainer, loader, values = self.evaluator(cutoff), self.loader("test", "BPR", size), {}
        seconds = timed(lambda: values.update(trainer.evaluate(loader, load_best_model=False)))
        return seconds | values

    def export(self, path: str) -> dict:
        """`items` [I + 1], `table` [I + 1, d], `users` [T] and `states` [T, d]; ids are integers, padding is 0."""
        dataset, model, users, states = self.test_data._dataset, self.models["BPR"], [], []
        model.eval()
        with torch.no_grad():
            for interaction, *_ in self.test_data:
                users += [int(user) for user in dataset.id2token("user_id", interaction["user_id"])]
                states.append(model(interaction["item_id_list"], interaction["item_length"]))
        items = [0, *map(int, dataset.field2id_token["item_id"][1:])]
        table = model.item_embedding.weight.detach().numpy()
        np.savez(path, items=items, table=table, users=users, states=torch.cat(states).numpy())
        return {}


def timed(job) -> dict:
    """Seconds of the wall clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main() -> None:
    """Answer until standard input ends."""
    folder, threads = sys.argv[1:]
    sys.argv = sys.argv[:1]  # RecBole reads it
    os.chdir(folder)  # it writes logs where it runs
    torch.set_num_threads(int(threads))
    torch.autograd.set_detect_anomaly(False)
    worker = Worker(folder)
    answer(worker.sizes())
    jobs = {"train": worker.train, "evaluate": worker.evaluate, "export": worker.export}
    for line in sys.stdin:
        request = json.loads(line)
        answer(jobs[request.pop("do")](**request))


def answer(content: dict) -> None:
    """One line."""
    ANSWERS.write(json.dumps(content, default=float) + "\n")
    ANSWERS.flush()


if __name__ == "__main__":
    main()
