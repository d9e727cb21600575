"""SLMRec: self-supervised learning for multimedia recommendation (Tao et al. 2023).

An item has one representation a modality: an id embedding, a projected image vector, a projected
text vector. Each modality is propagated over the graph of interactions from a user table that all
of them share, and the modalities are fused at the end:

    x_im = W_m v_im / |v_im| + b_m, or the id embedding        layer 0 of item i
    E_m  = LightGCN(users: P, items: X_m)                      `lightgcn`, L layers
    u = F_user [E_1u; ...; E_Mu] + c,  i = F_item [E_1i; ...; E_Mi] + c'
    loss = InfoNCE(u, i) + ssl_weight * SSL

Everything before the loss is linear, which saves most of the work without changing the result: the
share of P in E_m is the same for every m, so it is propagated once; fusion commutes with a hop, so
it comes before the last hop to the users, and before all hops of the views.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sda_features.config import RecommenderSettings
from sda_features.logs.interactions import Interactions
from sda_features.recommenders.base import Batch, Recommender
from sda_features.recommenders.lightgcn import BipartiteGraph
from sda_features.recommenders.representations import ItemVectors, drop_ids, id_embedding
from sda_features.recommenders.softmax import softmax_loss


def info_nce(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """-mean_k log [exp(cos(a_k, p_k) / t) / sum_j exp(cos(a_k, p_j) / t)].

    Args:
        anchors: float [n, d].
        positives: float [n, d]; row k belongs to anchor k, the other rows are its negatives.
        temperature: t.
    """
    table = F.pad(F.normalize(positives), (0, 0, 1, 0))  # `softmax_loss` leaves row 0 out
    targets = torch.arange(1, len(table), device=table.device)
    return softmax_loss(F.normalize(anchors) / temperature, table, targets)


def feature_dropout(shape: tuple[int, int, int], rate: float, device: torch.device) -> Tensor:
    """FD: factor 0 with probability `rate`, else 1 / (1 - rate); float [M, I, d]."""
    return F.dropout(torch.ones(shape, device=device), rate)


def feature_masks(items: int, modalities: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """FM: two views of each item, each without one modality, never the same in both.

    Args:
        items: I.
        modalities: M, at least 2.
        device: where the result lies.

    Returns:
        Twice float [M, I, 1], 0 for the modality that is masked, else 1.
    """
    first, second = torch.rand(items, modalities, device=device).argsort(dim=1)[:, :2].T  # [I] each
    numbers = torch.arange(modalities, device=device)[:, None]
    return (numbers != first).float()[:, :, None], (numbers != second).float()[:, :, None]


@final
class ModalityTable(nn.Module):
    """Layer 0 of the items: id embedding and projected vectors, one table a modality.

    The order is id, then the modalities of the vectors with text last; `FineAndCoarse` goes along it.
    Padding, and an item that lacks a modality, have zero there. The vectors are buffers that
    `state_dict` leaves out: they belong to the feature store.

    Attributes:
        names: of the M modalities.
    """

    found: Tensor | None

    def __init__(
        self,
        item_count: int,
        settings: RecommenderSettings,
        vectors: ItemVectors | None,
        trained: NDArray[np.bool_] | None = None,
    ) -> None:
        super().__init__()
        self.ids: nn.Embedding | None = None
        self.projections = nn.ModuleList()
        if vectors is None or settings.fusion == "join":
            self.ids = id_embedding(item_count, settings.hidden_dim, trained)
        self.id_dropout = settings.id_dropout if vectors is not None else 0.0
        self.register_buffer("found", None, persistent=False)
        if vectors is not None:
            self.found = torch.from_numpy(vectors.found).float()[:, None]
        blocks = _blocks(vectors) if vectors else {}
        for number, block in enumerate(blocks.values()):
            self.register_buffer(f"vectors_{number}", F.normalize(block), persistent=False)
            self.register_buffer(f"there_{number}", block.any(dim=1)[:, None].float(), persistent=False)
            self.projections.append(_linear(block.shape[1], settings.hidden_dim))
        self.names = (*(["id"] if self.ids is not None else []), *blocks)

    def forward(self) -> Tensor:
        """float32 [M, I + 1, d]."""
        parts = [] if self.ids is None else [self.ids.weight]
        if parts and self.training and self.found is not None:
            parts = [drop_ids(parts[0], self.id_dropout, self.found)]
        for number, projection in enumerate(self.projections):
            vectors, there = self.get_buffer(f"vectors_{number}"), self.get_buffer(f"there_{number}")
            parts.append(projection(vectors) * there)
        return torch.stack(parts)


@final
class FineAndCoarse(nn.Module):
    """FAC: modalities meet pair by pair, in a space of their own that is coarser each time.

    f_1 = E_1, f_m = B_m E_m + b_m for m > 1;
    SSL = sum over m < M of InfoNCE(A_m f_m + a_m, f_{m+1}): id and image meet in the fine space, and
    what the image is there meets the text in the coarse one. With one modality there is nothing to meet.
    """

    def __init__(self, modalities: int, hidden: int) -> None:
        super().__init__()
        self.onwards = nn.ModuleList(_linear(hidden, hidden) for _ in range(modalities - 1))  # A
        self.entries = nn.ModuleList(_linear(hidden, hidden) for _ in range(modalities - 1))  # B

    def forward(self, items: Tensor, temperature: float) -> Tensor:
        """Loss of items whose modalities are float32 [M, n, d], each item once."""
        reached, *others = items
        total = items.new_zeros(())
        for onward, entry, other in zip(self.onwards, self.entries, others, strict=True):
            entered = entry(other)
            total = total + info_nce(onward(reached), entered, temperature)
            reached = entered
        return total


@final
class SLMRec(Recommender):
    """See the module's docstring. `fusion="replace"` leaves the id embedding out of the modalities.

    Scores are plain products: ranked by the cosine of the loss, which forgets lengths, the model does
    worse (Amazon Beauty, ids, 10 epochs, one seed: validation NDCG@10 of .0382 here, .0328 there).
    Users and items that came after the training have no place in the graph and need another training.

    The self-supervised tasks contrast items of a batch, each once:

    - fd, fm, fd+fm: InfoNCE(i', i''), two views of the fused item. Features of layer 0 are dropped
      (`feature_dropout`), masked (`feature_masks`) or both, and then propagated and fused as usual.
    - fac: see `FineAndCoarse`.

    With one modality, e.g. ids alone, fm and fac have nothing to contrast and are left out.
    """

    def __init__(
        self, train: Interactions, settings: RecommenderSettings, vectors: ItemVectors | None
    ) -> None:
        super().__init__(settings)
        hidden = settings.hidden_dim
        self.graph = BipartiteGraph(train)
        self.items = ModalityTable(train.item_count, settings, vectors, train.item_counts > 0)
        self.modalities = len(self.items.names)
        self.users = nn.Parameter(nn.init.xavier_normal_(torch.empty(train.user_count, hidden)))
        self.user_fusion = _linear(self.modalities * hidden, hidden)
        self.item_fusion = _linear(self.modalities * hidden, hidden)
        several = self.modalities > 1
        fac = settings.ssl_task == "fac" and several
        self.drops = "fd" in settings.ssl_task
        self.masks = "fm" in settings.ssl_task and several
        self.fine_and_coarse = FineAndCoarse(self.modalities, hidden) if fac else None

    @classmethod
    def build(cls, train: Interactions, settings: RecommenderSettings, vectors: ItemVectors | None) -> Self:
        """A fresh model over the graph of `train`."""
        return cls(train, settings, vectors)

    def batches(self, train: Interactions, random: np.random.Generator) -> Iterator[Batch]:
        """All interactions in random order, in batches of at most `batch_size` that differ by one at most.

        Yields `users`, int64 [B], and `items`, int64 [B]: user k took item k.
        """
        users, items = torch.from_numpy(train.users), torch.from_numpy(train.items).long()
        order = torch.from_numpy(random.permutation(len(items)))
        # A short last batch would have few negatives, and its loss another scale.
        for chosen in torch.tensor_split(order, -(-len(order) // self.settings.batch_size)):
            yield {"users": users[chosen], "items": items[chosen]}

    def loss(self, batch: Batch) -> Tensor:
        """InfoNCE over the pairs of a batch, and the self-supervised task over its items."""
        settings = self.settings
        layer_zero = self.items()
        users, user_place = torch.unique(batch["users"], return_inverse=True)
        items, item_place = torch.unique(batch["items"], return_inverse=True)
        states, modal, shared = self._propagate(layer_zero, users, items)
        fused = self._fuse_items(modal)
        loss = info_nce(states[user_place], fused[item_place], settings.temperature)
        if self.fine_and_coarse is not None:
            loss = loss + settings.ssl_weight * self.fine_and_coarse(modal, settings.ssl_temperature)
        elif self.drops or self.masks:
            first, second = self._views(layer_zero, shared, items)
            loss = loss + settings.ssl_weight * info_nce(first, second, settings.ssl_temperature)
        return loss

    def view_factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What layer 0 of the items is multiplied with in the two views, float32 [M, I + 1, 1 or d]."""
        rows, hidden = self.graph.to_items.shape[0], self.settings.hidden_dim
        first = second = torch.ones(1, 1, 1, device=device)
        if self.masks:
            first, second = feature_masks(rows, self.modalities, device)
        if self.drops:
            shape, rate = (self.modalities, rows, hidden), self.settings.feature_dropout
            first = first * feature_dropout(shape, rate, device)
            second = second * feature_dropout(shape, rate, device)
        return first, second

    def representations(self) -> tuple[Tensor, Tensor]:
        """All users, float32 [U, d], and all items, float32 [I + 1, d]."""
        users, items = (
            torch.arange(len(table), device=self.device)
            for table in (self.graph.to_users, self.graph.to_items)
        )
        states, modal, _ = self._propagate(self.items(), users, items)
        return states, self._fuse_items(modal)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """W_m and b_m."""
        return list(self.items.projections.parameters())

    def user_states(self, users: Tensor, histories: Tensor) -> Tensor:
        """Rows of the propagated user table, float32 [B, d]; `histories` is not used."""
        return self.representations()[0][users]

    def item_table(self) -> Tensor:
        """Propagated and fused items, float32 [I + 1, d]."""
        return self.representations()[1]

    def _states(self, history: Interactions, users: NDArray[np.int64], batch: int | None = None) -> Tensor:
        return self.representations()[0][torch.from_numpy(users).to(self.device)]  # one propagation for all

    def _propagate(self, layer_zero: Tensor, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means over layers for distinct `users` [m] and `items` [n], from layer 0 [M, I + 1, d] of the items.

        Returns:
            users, fused, float32 [m, d].
            items by modality, float32 [M, n, d].
            what came to those items from the user table, in each modality alike, float32 [n, d].
        """
        layers = self.settings.graph_layers
        own, towards_items = self.graph.user_propagation(self.users[None], layers)
        here, towards_users = self.graph.item_propagation(layer_zero, layers)
        leaving = _blockwise(self.user_fusion, towards_users)
        arrived = self.graph.users_from(leaving[None], users)[0]
        states = F.linear(own[0, users], self._shared_weight(self.user_fusion)) + arrived
        shared = self.graph.items_from(towards_items, items)[0] / (layers + 1)
        modal = here[:, items] / (layers + 1) + shared
        return states / (layers + 1) + self.user_fusion.bias, modal, shared

    def _views(self, layer_zero: Tensor, shared: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Two augmented views of `items`, fused, float32 [n, d] each; `shared` as from `_propagate`."""
        layers = self.settings.graph_layers
        factors = self.view_factors(layer_zero.device)
        fused = torch.stack([_blockwise(self.item_fusion, layer_zero * factor) for factor in factors])
        here, _ = self.graph.item_propagation(fused, layers)
        common = F.linear(shared, self._shared_weight(self.item_fusion), self.item_fusion.bias)
        first, second = here[:, items] / (layers + 1) + common
        return first, second

    def _fuse_items(self, modal: Tensor) -> Tensor:
        """float32 [M, n, d] -> [n, d]."""
        return _blockwise(self.item_fusion, modal) + self.item_fusion.bias

    def _shared_weight(self, fusion: nn.Linear) -> Tensor:
        """What a fusion does to a part that all modalities share: the sum of its M blocks, float32 [d, d]."""
        return fusion.weight.view(fusion.out_features, self.modalities, -1).sum(dim=1)


def _blockwise(fusion: nn.Linear, tables: Tensor) -> Tensor:
    """A fusion without its bias: [X_1 ... X_M] W^T = sum over m of X_m W_m^T; float32 [M, n, d] -> [n, d]."""
    blocks = torch.split(fusion.weight, tables.shape[2], dim=1)
    first, *others = (F.linear(table, block) for table, block in zip(tables, blocks, strict=True))
    return sum(others, start=first)


def _linear(width: int, hidden: int) -> nn.Linear:
    layer = nn.Linear(width, hidden)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _blocks(vectors: ItemVectors) -> dict[str, Tensor]:
    """Modality -> its columns [I + 1, d]; text last, for a caller may give any order."""
    dims = [block["dim"] for block in vectors.blocks.values()]
    columns = torch.split(torch.from_numpy(vectors.values), dims, dim=1)
    blocks = dict(zip(vectors.blocks, columns, strict=True))
    return {name: blocks[name] for name in sorted(blocks, key=lambda name: name == "text")}
