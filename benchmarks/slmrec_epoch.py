"""One training epoch of SLMRec (fine and coarse, three modalities) against the loop that is usually written.

The usual loop propagates each modality by itself over one adjacency of users and items, a sparse
matrix in coordinate form, and fuses all rows before it takes those of the batch. A second one does
the same with compressed rows and a backward pass that knows the matrix is symmetric, which shows
what the form of the matrix is worth. All take the same batches from the same weights; losses and
gradients are compared first.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import median, options, paired_ratio, report, take_turns
from torch import Tensor, nn

from sda_features.config import recommender_settings
from sda_features.logs.interactions import Interactions, index_interactions, read_interactions
from sda_features.logs.splits import leave_one_out
from sda_features.recommenders.base import Batch
from sda_features.recommenders.representations import prepare_vectors
from sda_features.recommenders.slmrec import SLMRec

TOLERANCE = 1e-4


def main() -> None:
    """Measure and print."""
    arguments = options(
        __doc__ or "",
        ("--log", {"type": Path, "help": "interaction log; none: generated, as large as Amazon Beauty"}),
        ("--dim", {"type": int, "default": 256, "help": "dimension of the vectors of a modality"}),
    )
    torch.set_num_threads(1)
    log = read_interactions(arguments.log) if arguments.log else generated_log(0.2 if arguments.quick else 1)
    train = leave_one_out(log).train
    random = np.random.default_rng(0)
    vectors = prepare_vectors(
        {name: padded(random.normal(5, 1, (train.item_count, arguments.dim))) for name in ("image", "text")},
        train.item_count,
    )
    torch.manual_seed(0)
    ours = SLMRec.build(train, recommender_settings("slmrec", "sparse"), vectors)
    batches = list(ours.batches(train, random))
    contenders = {
        "ours": (ours, ours.loss),
        "usual, coordinates": plain(ours, train, compressed=False),
        "usual, compressed rows": plain(ours, train, compressed=True),
    }
    errors = [difference(contenders["ours"], other, batches[0]) for other in list(contenders.values())[1:]]
    if max(errors) > TOLERANCE:
        raise SystemExit(f"the contenders differ: {errors}")
    epochs = {name: epoch(*contender, batches) for name, contender in contenders.items()}
    seconds = take_turns(epochs, rounds=2, warmup=0, clock=time.process_time)
    print(
        f"\n{train.user_count} users, {train.item_count} items, {len(train.items)} interactions, "
        f"{len(batches)} steps, modalities id, image, text ({arguments.dim} each), one thread"
    )
    print(f"{'one epoch':26} {'CPU s':>9} {'ratio':>7}")
    for name, found in seconds.items():
        print(f"{name:26} {median(found):9.2f} {paired_ratio(found, seconds['ours']):6.2f}x")
    print(f"largest relative difference of a gradient: {max(errors):.1e}")
    report(
        "slmrec_epoch",
        against="the usual loop, one modality at a time, sparse matrix in coordinates",
        ratio=paired_ratio(seconds["usual, coordinates"], seconds["ours"]),
        ratio_compressed_rows=round(paired_ratio(seconds["usual, compressed rows"], seconds["ours"]), 3),
        cpu_seconds=round(median(seconds["ours"]), 3),
        steps=len(batches),
        gradient_error=float(f"{max(errors):.1e}"),
    )


class Symmetric(torch.autograd.Function):
    """A X for a symmetric A in compressed rows."""

    @staticmethod
    def forward(context, matrix: Tensor, table: Tensor) -> Tensor:
        """[N, N] and [N, d] -> [N, d]."""
        context.matrix = matrix
        return matrix @ table

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[None, Tensor]:
        """A is its own transpose."""
        return None, context.matrix @ gradient


def plain(
    ours: SLMRec, train: Interactions, *, compressed: bool
) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """The usual model with weights of its own, equal to `ours`, and its loss."""
    settings, users, width = ours.settings, train.user_count, train.item_count + 1
    model = SLMRec.build(train, settings, None)  # only its parameters are used
    model.items, model.fine_and_coarse = copy.deepcopy(ours.items), copy.deepcopy(ours.fine_and_coarse)
    model.user_fusion, model.item_fusion = copy.deepcopy(ours.user_fusion), copy.deepcopy(ours.item_fusion)
    model.users = nn.Parameter(ours.users.detach().clone())
    adjacency = symmetric_adjacency(train)
    if compressed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adjacency = adjacency.to_sparse_csr()

    def propagated(items: Tensor) -> tuple[Tensor, Tensor]:
        nodes = torch.cat([model.users, items])
        layers = [nodes]
        for _ in range(settings.graph_layers):
            nodes = Symmetric.apply(adjacency, nodes) if compressed else torch.sparse.mm(adjacency, nodes)
            layers.append(nodes)
        return torch.split(torch.stack(layers, dim=1).mean(dim=1), [users, width])

    def contrast(left: Tensor, right: Tensor, temperature: float) -> Tensor:
        logits = F.normalize(left) @ F.normalize(right).T / temperature
        return F.cross_entropy(logits, torch.arange(len(logits)))

    def loss(batch: Batch) -> Tensor:
        by_user, by_item = zip(*(propagated(table) for table in model.items()), strict=True)
        all_users = model.user_fusion(torch.cat(by_user, dim=1))
        all_items = model.item_fusion(torch.cat(by_item, dim=1))
        total = contrast(all_users[batch["users"]], all_items[batch["items"]], settings.temperature)
        items = batch["items"].unique()
        task, reached, ssl = model.fine_and_coarse, by_item[0][items], 0.0
        for onward, entry, other in zip(task.onwards, task.entries, by_item[1:], strict=True):
            entered = entry(other[items])
            ssl = ssl + contrast(onward(reached), entered, settings.ssl_temperature)
            reached = entered
        return total + settings.ssl_weight * ssl

    return model, loss


def epoch(model: nn.Module, loss: Callable[[Batch], Tensor], batches: list[Batch]) -> Callable[[], None]:
    """A job that trains over all batches once."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)

    def job() -> None:
        for batch in batches:
            value = loss(batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return job


def difference(
    one: tuple[nn.Module, Callable[[Batch], Tensor]],
    other: tuple[nn.Module, Callable[[Batch], Tensor]],
    batch: Batch,
) -> float:
    """Largest |g - g'| / |g| over the parameters, and of the loss."""
    values, gradients = [], []
    for model, loss in (one, other):
        value = loss(batch)
        parameters = [tensor for _, tensor in sorted(model.named_parameters())]
        gradients.append(torch.autograd.grad(value, parameters))
        values.append(value.item())
    if not all(gradient.norm() > 0 for gradient in gradients[0]):
        raise SystemExit("vacuous: a gradient is zero")
    relative = [((a - b).norm() / a.norm()).item() for a, b in zip(*gradients, strict=True)]
    return max(*relative, abs(values[0] / values[1] - 1))


def symmetric_adjacency(train: Interactions) -> Tensor:
    """D^-1/2 A D^-1/2 over users and items, float32, coordinates, coalesced."""
    users, items = np.unique(np.stack([train.users, train.items + train.user_count]), axis=1)
    rows, columns = np.concatenate([users, items]), np.concatenate([items, users])
    size = train.user_count + train.item_count + 1
    degrees = np.bincount(rows, minlength=size)
    values = (1 / np.sqrt(degrees[rows] * degrees[columns])).astype(np.float32)
    places = torch.from_numpy(np.stack([rows, columns]))
    return torch.sparse_coo_tensor(
        places, torch.from_numpy(values), (size, size), check_invariants=True
    ).coalesce()


def generated_log(share: float) -> Interactions:
    """As large as Amazon Beauty, 22,363 users and 12,101 items, popular ones more often; or a share of that."""
    random = np.random.default_rng(0)
    user_count, item_count = int(22_363 * share), int(12_101 * share)
    lengths = 5 + random.geometric(1 / 4.9, user_count) - 1
    popularity = 1 / (20 + np.arange(item_count))
    items = random.choice(item_count, lengths.sum(), p=popularity / popularity.sum())
    users = np.repeat(np.arange(user_count), lengths)
    return index_interactions(users, items, catalogue=[str(item) for item in range(item_count)])


def padded(vectors: np.ndarray) -> np.ndarray:
    """Row 0 for padding."""
    return np.concatenate([np.zeros((1, vectors.shape[1])), vectors]).astype(np.float32)


if __name__ == "__main__":
    main()
