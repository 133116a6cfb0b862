import torch
from torch import nn
from torch.nn import functional as F

from lors_cli.adapters.dense_linear import DenseLinear


def test_it_is_the_linear_with_and_without_gradients() -> None:
    linear = nn.Linear(48, 70).requires_grad_(False)
    own = DenseLinear(linear)
    assert own.weight is linear.weight
    assert own.bias is linear.bias
    for batch in (1, 8, 9):
        x = torch.randn(2, batch, 48)[:, -1:].requires_grad_(True)
        expected = F.linear(x, linear.weight, linear.bias)
        with torch.inference_mode():
            torch.testing.assert_close(own(x), expected)
        torch.testing.assert_close(own(x.detach()), expected)
        assert own(x).requires_grad
        own(x).sum().backward()
        torch.testing.assert_close(x.grad, linear.weight.sum(dim=0).expand_as(x))
    linear.bias.requires_grad_(True)
    assert own(x.detach()).requires_grad
