"""A model without its weights draws no random numbers for them, and others are drawn as ever."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lors_cli.models.load import skeleton
from lors_cli.models.undrawn import Undrawn


def test_a_skeleton_draws_nothing(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Size] = []
    monkeypatch.setattr(torch._refs, "normal", lambda *_, **__: drawn.append(torch.Size()))
    monkeypatch.setattr(nn.init, "_no_grad_normal_", lambda tensor, *_, **__: drawn.append(tensor.shape))
    monkeypatch.setattr(nn.init, "_no_grad_uniform_", lambda tensor, *_, **__: drawn.append(tensor.shape))
    state = torch.get_rng_state()
    assert all(parameter.is_meta for parameter in skeleton(dense).parameters())
    assert not drawn
    assert torch.equal(torch.get_rng_state(), state)


def test_tensors_with_content_are_drawn() -> None:
    torch.manual_seed(0)
    wanted = nn.Linear(4, 4)
    torch.manual_seed(0)
    with Undrawn():
        nn.Linear(4, 4, device="meta")
        linear = nn.Linear(4, 4)
        assert nn.init.normal_(tensor=linear.bias) is linear.bias
    assert torch.equal(linear.weight, wanted.weight)
    assert not torch.equal(linear.bias, wanted.bias)
