import torch

from lors_cli.sparsity.rounding import FACTORS, mix, stochastic_bfloat16


def test_the_hash_by_hand() -> None:
    for number in (0, 1, 12345, 2**32 - 1):
        x = number
        x ^= x >> 16
        x = x * FACTORS[0] % 2**32
        x ^= x >> 15
        x = x * FACTORS[1] % 2**32
        x ^= x >> 16
        assert int(mix(torch.tensor(number))) == x


def test_rounds_to_one_of_the_two_neighbours_with_the_right_mean() -> None:
    for value in (0.1, -0.1, 1.0078125 + 2**-12, 3e-39, -65000.0):
        exact = torch.full((100_000,), value)
        rounded = stochastic_bfloat16(exact, torch.tensor(7)).float()
        below = exact.view(torch.int32)[0] & -0x10000
        neighbours = torch.stack([below, below + 0x10000]).view(torch.float32)
        assert set(rounded.unique().tolist()) <= set(neighbours.tolist())
        step = float((neighbours[1] - neighbours[0]).abs())
        assert abs(float(rounded.double().mean()) - float(exact[0])) < 0.01 * step


def test_deterministic_by_seed_and_place() -> None:
    value = torch.randn(40, 30)
    whole = stochastic_bfloat16(value, torch.tensor(3))
    assert torch.equal(whole, stochastic_bfloat16(value, torch.tensor(3)))
    assert not torch.equal(whole, stochastic_bfloat16(value, torch.tensor(4)))
    assert torch.equal(whole[10:], stochastic_bfloat16(value[10:], torch.tensor(3), first=300))


def test_what_bfloat16_holds_and_what_is_not_finite_stay() -> None:
    exact = torch.randn(1000).bfloat16()
    assert torch.equal(stochastic_bfloat16(exact.float(), torch.tensor(1)), exact)
    odd = torch.tensor([float("inf"), float("-inf"), 0.0, -0.0])
    assert torch.equal(stochastic_bfloat16(odd, torch.tensor(1)).float(), odd)
    broken = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000]).int().view(torch.float32)
    assert stochastic_bfloat16(broken, torch.tensor(1)).isnan().all()
