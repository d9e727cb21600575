import torch
from hypothesis import given
from hypothesis import strategies as st

from sda_features.recommenders.packing import attention, pack


def left_padded(lengths, width):
    return torch.arange(width)[None, :] >= width - torch.tensor(lengths)[:, None]


@given(st.integers(1, 40), st.lists(st.integers(0, 40), min_size=1, max_size=9))
def test_packing_keeps_every_real_position_once(width, lengths):
    lengths = [min(length, width) for length in lengths]
    real = left_padded(lengths, width)
    packing = pack(real)
    assert packing.place.sort().values.tolist() == real.flatten().nonzero().squeeze(1).tolist()
    assert sum(len(group.place) for group in packing.groups) == len(packing.place)
    padded = torch.arange(1.0, len(lengths) * width + 1).view(len(lengths), width, 1) * real[..., None]
    assert torch.equal(packing.unpack(padded.view(-1, 1)[packing.place]), padded)
    assert torch.equal(packing.column, packing.place % width)


def test_attention_matches_each_sequence_alone():
    torch.manual_seed(0)
    lengths, width, heads = [5, 0, 8, 20, 9, 20, 1], 20, 2  # those of 20 form a group without padding
    packing = pack(left_padded(lengths, width))
    q, k, v = torch.randn(3, sum(lengths), 6, dtype=torch.float64).unbind()
    for causal in (True, False):
        found = packing.unpack(attention(q, k, v, packing, heads=heads, causal=causal, dropout=0.0))
        padded = [packing.unpack(x) for x in (q, k, v)]
        for row, length in enumerate(lengths):
            if not length:
                continue
            one, two, three = (
                x[row, width - length :].view(length, heads, 3).transpose(0, 1) for x in padded
            )
            logits = one @ two.transpose(1, 2) / 3**0.5
            if causal:
                logits = logits.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
            expected = (logits.softmax(-1) @ three).transpose(0, 1).reshape(length, 6)
            torch.testing.assert_close(found[row, width - length :], expected)


def test_the_last_position_alone_attends_as_among_all():
    torch.manual_seed(0)
    for lengths in ([5, 0, 8, 20, 9, 20, 1], [0], [3, 3], [20] * 4):
        packing = pack(left_padded(lengths, 20))
        q, k, v = torch.randn(3, sum(lengths), 6, dtype=torch.float64).unbind()
        assert packing.column[packing.last].tolist() == [19] * sum(length > 0 for length in lengths)
        for causal in (True, False):
            options = {"heads": 2, "causal": causal, "dropout": 0.0}
            of_last = attention(q[packing.last], k, v, packing, **options, last=True)
            torch.testing.assert_close(of_last, attention(q, k, v, packing, **options)[packing.last])


def test_padding_sends_no_nan_into_the_gradient():
    packing = pack(left_padded([1, 0, 3], 12))
    x = torch.randn(4, 4, requires_grad=True)
    attention(x, x, x, packing, heads=1, causal=True, dropout=0.5).sum().backward()
    assert torch.isfinite(x.grad).all()
