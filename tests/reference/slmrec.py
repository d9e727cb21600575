"""A slow plain twin of SLMRec: a dense adjacency, one modality at a time, one pair at a time.

It reads the parameters of the fast model by name and shares no code with it.
"""

import torch
from torch import Tensor, nn


def adjacency(log) -> Tensor:
    """D^-1/2 A D^-1/2 over users and then items with padding, float64 [U + I + 1, U + I + 1]."""
    users, size = log.user_count, log.user_count + log.item_count + 1
    links = torch.zeros(size, size, dtype=torch.float64)
    for user, item in zip(log.users, log.items, strict=True):
        links[user, users + item] = links[users + item, user] = 1
    roots = torch.sqrt(links.sum(dim=1).clamp(min=1))
    return links / roots[:, None] / roots[None, :]


def layer_zero(model: nn.Module, raw: dict[str, Tensor]) -> list[Tensor]:
    """Items of each modality, [I + 1, d]; `raw` holds the vectors, id and text standing first and last."""
    tables = [] if model.items.ids is None else [model.items.ids.weight]
    for projection, vectors in zip(model.items.projections, raw.values(), strict=True):
        rows = []
        for vector in vectors:
            length = torch.sqrt((vector * vector).sum())
            unit = vector / length if length > 0 else vector
            rows.append((projection.weight @ unit + projection.bias) * (length > 0))
        tables.append(torch.stack(rows))
    return tables


def propagate(model: nn.Module, graph: Tensor, tables: list[Tensor]) -> list[Tensor]:
    """Mean of the layers of each modality, users and then items, [U + I + 1, d]."""
    means = []
    for table in tables:
        nodes = [torch.cat([model.users, table])]
        for _ in range(model.settings.graph_layers):
            nodes.append(graph @ nodes[-1])
        means.append(sum(nodes) / len(nodes))
    return means


def fuse(fusion: nn.Linear, means: list[Tensor], row: int) -> Tensor:
    return fusion.weight @ torch.cat([mean[row] for mean in means]) + fusion.bias


def info_nce(anchors: list[Tensor], positives: list[Tensor], temperature: float) -> Tensor:
    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum() / torch.sqrt((a * a).sum() * (b * b).sum()) / temperature

    terms = []
    for anchor, positive in zip(anchors, positives, strict=True):
        every = sum(torch.exp(similarity(anchor, other)) for other in positives)
        terms.append(torch.log(every) - similarity(anchor, positive))
    return sum(terms) / len(terms)


def loss(
    model: nn.Module,
    log,
    raw: dict[str, Tensor],
    pairs: list[tuple[int, int]],
    factors: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Main loss, and self-supervised loss times its weight; `factors` are those that the views drew."""
    settings, users = model.settings, log.user_count
    graph, tables = adjacency(log), layer_zero(model, raw)
    means = propagate(model, graph, tables)
    main = info_nce(
        [fuse(model.user_fusion, means, user) for user, _ in pairs],
        [fuse(model.item_fusion, means, users + item) for _, item in pairs],
        settings.temperature,
    )
    items = sorted({item for _, item in pairs})
    ssl = torch.zeros((), dtype=torch.float64)
    if settings.ssl_task == "fac":
        # id -> image -> text: what enters one space goes on to the next.
        reached = [means[0][users + item] for item in items]
        for number in range(len(tables) - 1):
            onward, entry = model.fine_and_coarse.onwards[number], model.fine_and_coarse.entries[number]
            left = [onward.weight @ row + onward.bias for row in reached]
            reached = [entry.weight @ means[number + 1][users + item] + entry.bias for item in items]
            ssl = ssl + info_nce(left, reached, settings.ssl_temperature)
    elif settings.ssl_task != "fm" or len(tables) > 1:
        views = []
        for factor in factors:
            full = factor.expand(len(tables), len(tables[0]), settings.hidden_dim)
            augmented = [table * kept for table, kept in zip(tables, full, strict=True)]
            view = propagate(model, graph, augmented)
            views.append([fuse(model.item_fusion, view, users + item) for item in items])
        ssl = info_nce(*views, settings.ssl_temperature)
    return main, settings.ssl_weight * ssl
