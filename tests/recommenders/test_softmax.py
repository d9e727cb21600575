import pytest
import torch
import torch.nn.functional as F

from sda_features.recommenders import softmax
from sda_features.recommenders.softmax import softmax_loss


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_blocks_match_the_whole_matrix(monkeypatch, rows, scale):
    """Loss and both gradients, at block sizes that do not divide 7 and at logits that overflow exp."""
    torch.manual_seed(0)
    states, table = torch.randn(7, 5, dtype=torch.float64), torch.randn(12, 5, dtype=torch.float64)
    states, table = (scale * states).requires_grad_(), table.requires_grad_()
    targets = torch.tensor([1, 11, 4, 4, 1, 7, 2])
    monkeypatch.setattr(softmax, "LOGITS_AT_ONCE", 11 * rows)
    found = softmax_loss(states, table, targets)
    expected = F.cross_entropy(states @ table[1:].T, targets - 1)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    ours, theirs = (torch.autograd.grad(3 * loss, (states, table)) for loss in (found, expected))
    for mine, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)
    assert not ours[1][0].any()


def test_without_gradients():
    states, table = torch.randn(4, 3), torch.randn(9, 3)
    targets = torch.tensor([1, 8, 3, 3])
    with torch.inference_mode():
        expected = F.cross_entropy(states @ table[1:].T, targets - 1)
        torch.testing.assert_close(softmax_loss(states, table, targets), expected)


def test_one_side_alone_can_want_a_gradient():
    states, table = torch.randn(4, 3), torch.randn(9, 3, requires_grad=True)
    softmax_loss(states, table, torch.tensor([1, 8, 3, 3])).backward()
    assert table.grad.abs().max() > 0


def test_a_softmax_over_candidates_is_that_over_their_table():
    torch.manual_seed(0)
    states, table = torch.randn(7, 4), torch.randn(12, 4, requires_grad=True)
    candidates, targets = torch.tensor([0, 2, 3, 7, 11]), torch.tensor([2, 3, 7, 11, 2, 2, 11])
    loss = softmax_loss(states, table, targets, candidates)
    logits = states @ table.detach()[candidates[1:]].T
    expected = F.cross_entropy(logits, torch.tensor([0, 1, 2, 3, 0, 0, 3]))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert table.grad[candidates[1:]].abs().min() > 0
    assert not table.grad[[0, 1, 4, 5, 6, 8, 9, 10]].any()
