"""AudioVAE: the hand-written passes of its two busiest layers equal plain torch, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from vox.vae import CausalConv, DepthwiseConv, SineSquared, Snake


@pytest.mark.parametrize("dilation", [1, 3, 9])
@pytest.mark.parametrize("length", [1, 8, 60])
def test_depthwise(dilation, length):
    """Clips shorter than the filter's past, too."""
    conv = CausalConv(4, 4, 7, dilation=dilation, groups=4).double()
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 4, length, dtype=torch.double, requires_grad=True)
    expected = F.conv1d(F.pad(x, (6 * dilation, 0)), conv.weight(), conv.bias, dilation=dilation, groups=4)
    torch.testing.assert_close(conv(x), expected)
    inputs = x, conv.weight()[:, 0].detach().requires_grad_(), conv.bias[:, None].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: DepthwiseConv.apply(*inputs, dilation), inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_one_by_one(bias):
    conv = CausalConv(4, 6, 1, bias=bias)
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(conv(x), F.conv1d(x, conv.weight(), conv.bias))


def test_snake():
    snake = Snake(3).double()
    torch.nn.init.uniform_(snake.alpha, 0.2, 3.0)
    x = torch.randn(2, 3, 10, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(snake(x), x + torch.sin(snake.alpha * x).square() / snake.alpha)
    assert torch.autograd.gradcheck(SineSquared.apply, (x, snake.alpha))
