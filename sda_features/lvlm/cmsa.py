"""Cross-modal structural alignment (paper, section 2.1), InfoNCE, and the relations that must not be lost.

| paper | here |
|---|---|
| e^t, e^v [N, d_m] | `text`, `image` |
| tau | `temperature` |
| S (Eq. 1) | `cross_modal_logits` |
| T (Eq. 2) | softmax of `teacher_logits` |
| L_CL (Eq. 3) | `structural_loss` |

Beyond the paper: T may be made of the base model's relations, which stay put while the vectors move;
it may be blended with the item itself and with items that customers took together; and
`kept_relations` compares the relations inside each modality with the base model's. What these need
is `BaseRelations` before a batch is encoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sda_features.config import LossSettings


@dataclass(frozen=True, eq=False)
class BaseRelations:
    """What the loss is told of a batch of N items with both modalities; rows as in the batch.

    Attributes:
        pairs: N.
        text: [N + n_t, d], unit vectors of the base model, centred over the catalogue; None where
            the loss does not compare with them.
        image: [N + n_v, d], likewise.
        teacher_temperature: divides the teacher's logits.
        structure_temperatures: of the text's and the image's `kept_relations`.
        partners: bool [N, N], items that customers took together; None without a log.
    """

    pairs: int
    text: Tensor | None = None
    image: Tensor | None = None
    teacher_temperature: float = 0.07
    structure_temperatures: tuple[float, float] = (0.07, 0.07)
    partners: Tensor | None = None


@dataclass(frozen=True)
class LossOutput:
    """A batch's loss and the two signs of a collapsing space.

    Attributes:
        loss: scalar, differentiable.
        teacher_entropy: scalar, mean entropy of T's rows over log N; 1 means a uniform teacher, 0 InfoNCE.
        spread: scalar, norm of the mean unit vector, the larger of both modalities; 1 means all vectors alike.
    """

    loss: Tensor
    teacher_entropy: Tensor
    spread: Tensor


def cross_modal_logits(text: Tensor, image: Tensor, temperature: Tensor | float) -> Tensor:
    """S_ij = e_i^t . e_j^v / tau (Eq. 1), [N, N] from two [N, d]."""
    return text @ image.T / temperature


def teacher_logits(text: Tensor, image: Tensor, temperature: float, text_weight: float = 0.5) -> Tensor:
    """(w e_i^t . e_j^t + (1 - w) e_i^v . e_j^v) / temperature, [N, N], symmetric.

    Eq. 2 before its softmax has w = 1/2 and multiplies by tau: temperature = 1 / tau. With unit
    vectors that is close to uniform for any small tau.
    """
    return (text_weight * text @ text.T + (1 - text_weight) * image @ image.T) / temperature


def blended(rows: Tensor, target: Tensor, weight: float) -> Tensor:
    """Rows of probabilities [N, N] with `weight` of each moved to `target`'s, where that has any.

    `target` [N, N] holds weights >= 0; a row of zeros leaves the row of `rows` as it is.
    """
    sums = target.sum(dim=1, keepdim=True)
    share = weight * (sums > 0).to(rows.dtype)
    return (1 - share) * rows + share * target / sums.clamp(min=1e-12)


def structural_loss(student: Tensor, teacher: Tensor, second_direction: str = "proper") -> Tensor:
    """KL(T || P) averaged over both retrieval directions (Eq. 3).

    Logits S and probabilities T, [N, N] each -> scalar, in nats. With T = I it is the symmetric
    cross-entropy of InfoNCE.

    Args:
        second_direction: "proper" compares P^T with the rows of T, which are the right target
            because the teacher's logits are symmetric; "literal" with T's columns as Eq. 3 is
            written, which do not sum to 1.
    """
    back = teacher if second_direction == "proper" else teacher.T
    return (_divergence(teacher, student) + _divergence(back, student.T)) / 2


def kept_relations(vectors: Tensor, base: Tensor, temperature: float) -> Tensor:
    """KL(Q || R) in nats, R_i the softmax of e_i . e_j / temperature over all j but i, Q the base model's.

    Eq. 3 asks of a text what pictures tell as well, and the other way round. What one modality alone
    tells is lost by and by; this term asks for it.

    Vectors of one modality [n, d], and of the same items by the base model [n, d_b] -> scalar.
    """
    target = torch.softmax(others(base @ base.T) / temperature, dim=1)
    return _divergence(target, others(vectors @ vectors.T) / temperature)


def others(matrix: Tensor) -> Tensor:
    """A matrix without its diagonal, [n, n] -> [n, n - 1]."""
    n = len(matrix)
    return matrix.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)


def alignment_loss(
    text: Tensor, image: Tensor, settings: LossSettings, temperature: Tensor | float, known: BaseRelations
) -> LossOutput:
    """The training loss of a batch of item vectors, as the settings name it.

    Args:
        text: [N + n_t, d], the N items that have both modalities, then texts without a picture; any
            float dtype, computed in float32.
        image: [N + n_v, d], the N items, then pictures without a text.
        temperature: tau, a tensor when it is trained.
        known: what else the settings need.
    """
    text, image = text.float(), image.float()
    of_text, of_image = (F.normalize(vectors.detach(), dim=1).mean(dim=0).norm() for vectors in (text, image))
    spread = torch.maximum(of_text, of_image)  # not read here: a GPU would be waited for
    if settings.centre:
        text, image = text - text.mean(dim=0), image - image.mean(dim=0)
    if settings.normalize:
        text, image = F.normalize(text, dim=1), F.normalize(image, dim=1)
    student = cross_modal_logits(text[: known.pairs], image[: known.pairs], temperature)
    teacher = _teacher(text, image, settings, known)
    loss = structural_loss(student, teacher, settings.second_direction)
    if settings.structure_weight:
        assert known.text is not None
        assert known.image is not None
        heat_of_text, heat_of_image = known.structure_temperatures
        kept = kept_relations(text, known.text, heat_of_text)
        kept = kept + kept_relations(image, known.image, heat_of_image)
        loss = loss + settings.structure_weight * kept / 2
    return LossOutput(loss, normalized_entropy(teacher.detach()), spread)


def _teacher(text: Tensor, image: Tensor, settings: LossSettings, known: BaseRelations) -> Tensor:
    """T [N, N] from the vectors in training or from what is known."""
    own = torch.eye(known.pairs, device=text.device)
    rows = own
    if settings.kind == "cmsa":
        if settings.teacher == "fixed":
            assert known.text is not None
            assert known.image is not None
            text, image = known.text, known.image
        elif settings.detach_teacher:
            text, image = text.detach(), image.detach()
        text, image = text[: known.pairs], image[: known.pairs]
        logits = teacher_logits(text, image, known.teacher_temperature, settings.teacher_text_weight)
        rows = blended(torch.softmax(logits, dim=1), own, settings.teacher_self_weight)
    if known.partners is not None:
        rows = blended(rows, known.partners.float(), settings.behaviour_weight)
    return rows.clamp(min=torch.finfo(rows.dtype).tiny)  # log 0 has no gradient


def normalized_entropy(rows: Tensor) -> Tensor:
    """Mean entropy of rows of probabilities over log N: 0 for one-hot rows, 1 for uniform ones; 0 for N = 1."""
    entropy: Tensor = torch.special.entr(rows).sum(dim=1).mean()
    return entropy / math.log(max(rows.shape[1], 2))


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL between rows of probabilities and the softmax of rows of logits, mean over rows."""
    return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="batchmean")
