from pathlib import Path

import pytest
import torch
from torch import Tensor

from lors_cli.errors import LorsError
from lors_cli.sequential.states import PLACEMENTS, States

SHAPE = (5, 6)
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(directory: Path, windows: list[int], dtype: torch.dtype = torch.float32) -> States:
    return States(directory, windows, SHAPE, dtype, CPU)


def values(window: int, block: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random bits that are a different number for every window and block; -0.0, the smallest and the largest too."""
    states = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(100 * block + window)).to(dtype)
    states[0, 0, :3] = torch.tensor([-0.0, torch.finfo(dtype).tiny, torch.finfo(dtype).max])
    return states


def same(got: Tensor, expected: Tensor) -> bool:
    """Equal to the last bit."""
    alike = got.dtype == expected.dtype and got.shape == expected.shape
    return alike and torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def put_all(states: States, block: int, dtype: torch.dtype = torch.float32) -> None:
    for window in states.windows:
        states.put(window, values(window, block, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_what_was_put_comes_back_to_the_bit(tmp_path: Path, placement: str, dtype: torch.dtype) -> None:
    states = make(tmp_path, [0, 1, 2], dtype)
    states.open(0, placement)
    for block in range(5):
        put_all(states, block, dtype)
        states.turn()
        for window in (2, 0, 1, 1):
            assert same(states[window], values(window, block, dtype))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_placement_goes_on_from_the_files_of_any_other(
    tmp_path: Path, placement: str, dtype: torch.dtype
) -> None:
    first = make(tmp_path, [0, 1, 2], dtype)
    first.open(0, PLACEMENTS[PLACEMENTS.index(placement) - 1])
    for block in range(3):
        put_all(first, block, dtype)
        first.turn()
    again = make(tmp_path, [0, 1, 2], dtype)
    again.open(2, placement)
    for window in range(3):
        assert same(again[window], values(window, 2, dtype))
    for block in range(3, 6):
        put_all(again, block, dtype)
        again.turn()
        assert all(same(again[window], values(window, block, dtype)) for window in range(3))


def test_a_transposed_tensor_is_put_as_what_it_shows(tmp_path: Path) -> None:
    states = make(tmp_path, [0])
    states.open(0, "disk")
    shown = torch.randn(1, SHAPE[1], SHAPE[0]).transpose(1, 2)
    states.put(0, shown)
    states.turn()
    assert same(states[0], shown)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_block_that_was_not_finished_leaves_its_own_states_whole(tmp_path: Path, placement: str, block: int) -> None:
    killed = make(tmp_path, [0, 1, 2])
    killed.open(0, placement)
    for before in range(block + 1):
        put_all(killed, before)
        killed.turn()
    put_all(killed, block + 1)  # and killed before the turn
    again = make(tmp_path, [0, 1, 2])
    again.open(block, placement)
    assert all(same(again[window], values(window, block)) for window in range(3))
    assert all(same(killed[window], values(window, block + (placement != "disk"))) for window in range(3))


def test_while_a_block_is_at_work_its_windows_stay(tmp_path: Path) -> None:
    """Window by window the next states are put while those of other windows are still to be read."""
    states = make(tmp_path, [0, 1, 2])
    states.open(0, "disk")
    put_all(states, 0)
    states.turn()
    for window in range(3):
        assert same(states[window], values(window, 0))
        states.put(window, values(window, 1))
        assert same(states[window], values(window, 0))
    states.turn()
    assert all(same(states[window], values(window, 1)) for window in range(3))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_two_processes_share_the_files(tmp_path: Path, placement: str) -> None:
    even, odd = make(tmp_path, [0, 2, 4]), make(tmp_path, [1, 3])
    even.open(0, placement)
    odd.open(0, placement)
    for block in range(3):
        for states in ((odd, even), (even, odd))[block % 2]:
            put_all(states, block)
        odd.turn()
        even.turn()
        assert all(same(even[window], values(window, block)) for window in (0, 2, 4))
        assert all(same(odd[window], values(window, block)) for window in (1, 3))
    size = torch.Size(SHAPE).numel() * 4
    assert sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir()) == [
        ("states-0", 5 * size),
        ("states-1", 5 * size),
    ]
    alone = make(tmp_path, [0, 1, 2, 3, 4])  # started again with another number of processes
    alone.open(2, placement)
    assert all(same(alone[window], values(window, 2)) for window in range(5))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_changing_what_was_read_changes_no_file(tmp_path: Path, placement: str) -> None:
    states = make(tmp_path, [0])
    states.open(0, placement)
    put_all(states, 0)
    states.turn()
    again = make(tmp_path, [0])
    again.open(0 + 2, placement)  # the states before block 2 stand in the same file as those before block 0
    again[0].zero_()
    assert same(states[0], values(0, 0))


def test_a_file_is_read_at_need_only_from_the_disk(tmp_path: Path) -> None:
    states = make(tmp_path, [0, 1])
    states.open(0, "host")
    put_all(states, 0)
    states.turn()
    states.remove()
    assert list(tmp_path.iterdir()) == []
    states.remove()
    assert all(same(states[window], values(window, 0)) for window in range(2))
    states.open(0, "disk")
    put_all(states, 0)
    states.turn()
    states.remove()
    with pytest.raises(LorsError, match="cannot be read"):
        states[0]


def test_damage_to_any_window_is_told(tmp_path: Path) -> None:
    states = make(tmp_path, [0, 1, 2])
    states.open(0, "host")
    for block in range(2):
        put_all(states, block)
        digests = states.turn()
    path = tmp_path / "states-1"
    whole = path.read_bytes()
    assert digests.keys() == {"0", "1", "2"}
    assert make(tmp_path, [0, 1, 2]).damage(1, digests) is None
    spoilt = bytearray(whole)
    spoilt[len(whole) // 2] ^= 1
    cases = {
        "for window 1": spoilt,
        "bytes instead of": whole[:-1],
        "for window 0": (tmp_path / "states-0").read_bytes(),
    }
    for said, content in cases.items():
        path.write_bytes(bytes(content))
        assert said in str(make(tmp_path, [0, 1, 2]).damage(1, digests))
    assert make(tmp_path, [2]).damage(1, digests) is not None  # each process looks at its own
    path.unlink()
    assert "is missing" in str(make(tmp_path, [0]).damage(1, digests))
