"""Cross-modal structural alignment (paper, section 2.1) and the InfoNCE that Table 2 compares it with.

| paper | here |
|---|---|
| e^t, e^v [N, d_m] | `text`, `image` |
| tau | `temperature` |
| S (Eq. 1) | `cross_modal_logits` |
| T (Eq. 2) | softmax of `teacher_logits` |
| L_CL (Eq. 3) | `structural_loss` |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sda_features.config import LossSettings


@dataclass(frozen=True)
class LossOutput:
    """A batch's loss and the two signs of a collapsing space.

    Attributes:
        loss: scalar, differentiable.
        teacher_entropy: mean entropy of T's rows over log N; 1 means a uniform teacher. NaN for InfoNCE.
        spread: norm of the mean unit vector, the larger of both modalities; 1 means all vectors alike.
    """

    loss: Tensor
    teacher_entropy: float
    spread: float


def cross_modal_logits(text: Tensor, image: Tensor, temperature: Tensor | float) -> Tensor:
    """S_ij = e_i^t . e_j^v / tau (Eq. 1), [N, N] from two [N, d]."""
    return text @ image.T / temperature


def teacher_logits(text: Tensor, image: Tensor, scale: Tensor | float) -> Tensor:
    """(e_i^t . e_j^t + e_i^v . e_j^v) / 2 times `scale` (Eq. 2 before its softmax), [N, N], symmetric.

    Eq. 2 has scale = tau. With unit vectors that is close to uniform for any small tau, so
    `LossSettings.teacher_temperature` offers scale = 1 / teacher_temperature instead.
    """
    return (text @ text.T + image @ image.T) / 2 * scale


def structural_loss(student: Tensor, teacher: Tensor, second_direction: str = "proper") -> Tensor:
    """KL(T || P) averaged over both retrieval directions (Eq. 3).

    Args:
        student: [N, N] logits S.
        teacher: [N, N] logits of T, symmetric.
        second_direction: "proper" compares P^T with the rows of T, which are the right target
            because the teacher's logits are symmetric; "literal" with T's columns as Eq. 3 is
            written, which do not sum to 1.

    Returns:
        scalar, in nats.
    """
    log_target = F.log_softmax(teacher, dim=1)
    log_columns = log_target if second_direction == "proper" else log_target.T
    text_to_image = F.kl_div(
        F.log_softmax(student, dim=1), log_target, reduction="batchmean", log_target=True
    )
    image_to_text = F.kl_div(
        F.log_softmax(student.T, dim=1), log_columns, reduction="batchmean", log_target=True
    )
    return (text_to_image + image_to_text) / 2


def infonce_loss(student: Tensor) -> Tensor:
    """Symmetric cross-entropy with the item itself as the only target ("w/o Soft Target" in Table 2)."""
    own = torch.arange(student.shape[0], device=student.device)
    return (F.cross_entropy(student, own) + F.cross_entropy(student.T, own)) / 2


def alignment_loss(
    text: Tensor, image: Tensor, settings: LossSettings, temperature: Tensor | float
) -> LossOutput:
    """The training loss of a batch of item vectors, as the settings name it.

    Args:
        text, image: [N, d] vectors of the same N items; any float dtype, computed in float32.
        settings: loss kind and its choices.
        temperature: tau, a tensor when it is trained.
    """
    text, image = text.float(), image.float()
    unit_text, unit_image = F.normalize(text, dim=1), F.normalize(image, dim=1)
    if settings.normalize:
        text, image = unit_text, unit_image
    student = cross_modal_logits(text, image, temperature)
    spread = max(unit_text.mean(0).norm().item(), unit_image.mean(0).norm().item())
    if settings.kind == "infonce":
        return LossOutput(infonce_loss(student), math.nan, spread)
    scale = temperature if settings.teacher_temperature is None else 1 / settings.teacher_temperature
    teacher = teacher_logits(text, image, scale)
    if settings.detach_teacher:
        teacher = teacher.detach()
    loss = structural_loss(student, teacher, settings.second_direction)
    return LossOutput(loss, normalized_entropy(teacher.detach()), spread)


def normalized_entropy(logits: Tensor) -> float:
    """Mean entropy of the rows' softmax over log N: 0 for one-hot rows, 1 for uniform ones."""
    log_rows = F.log_softmax(logits, dim=1)
    entropy = -(log_rows.exp() * log_rows).sum(dim=1).mean()
    return (entropy / math.log(logits.shape[1])).item()
