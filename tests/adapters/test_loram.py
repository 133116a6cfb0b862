"""LoRAM's masked update on the original."""

import pytest
import torch
from torch import nn

from lors_cli.adapters.loram import LoRAM
from lors_cli.sparsity import mask


@pytest.mark.parametrize("columns", [1, 7, 8, 13, 16])
def test_bits_are_the_mask(columns: int) -> None:
    kept = torch.rand(5, columns) > 0.5
    bits = mask.to_bits(kept)
    assert bits.shape == (5, mask.bytes_of(columns))
    assert torch.equal(mask.from_bits(bits, columns), kept)
    written = "".join(f"{byte:08b}" for byte in bits[0].tolist())
    assert written == "".join(str(int(one)) for one in kept[0]).ljust(8 * bits.shape[1], "0")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_update_under_the_mask(dtype: torch.dtype) -> None:
    linear, kept = nn.Linear(13, 6, bias=False, dtype=dtype), torch.rand(6, 13) > 0.3
    weight = linear.weight.detach()
    weight[~kept] = weight[~kept] * -0.0  # the original's own zeros keep their signs
    adapter = LoRAM(linear, rank=2, alpha=6)
    nn.init.normal_(adapter.lora_B)
    adapter.mask.copy_(mask.to_bits(kept))
    assert [name for name, one in adapter.named_parameters() if one.requires_grad] == ["lora_A", "lora_B"]
    got = adapter.effective_weight(weight).detach()
    product = torch.zeros_like(adapter.lora_B @ adapter.lora_A)
    for i in range(6):
        for j in range(13):
            if kept[i, j]:
                product[i, j] = 3 * (adapter.lora_B[i] * adapter.lora_A[:, j]).sum()
    assert torch.equal(got[~kept], weight[~kept])
    assert torch.equal(got[~kept].signbit(), weight[~kept].signbit())
    torch.testing.assert_close(got, (weight + product.detach()).to(dtype))
    assert got.dtype == dtype
