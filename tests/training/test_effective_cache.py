import pytest
import torch
from torch import nn

from lors_cli.adapters.lors import LoRS
from lors_cli.config.methods import complete
from lors_cli.config.mixture import TrainingDataset
from lors_cli.config.train import Train
from lors_cli.models import memory
from lors_cli.training.effective_cache import TrainingCache


def test_auto_leaves_room_for_longer_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    section = complete(Train)(method="lors", dataset=TrainingDataset(path="x"), sequence_length=100, micro_batch_size=1)
    for tokens, kept in ((100, 1), (50, 1), (10, 0)):
        adapters = {"0.up": LoRS(nn.Linear(8, 8), rank=1, alpha=1)}
        cache = TrainingCache(section, adapters, torch.device("cpu"), 0)
        # 256 bytes to keep beside 128 for the optimiser; the micro-batch took 300 above the weights
        monkeypatch.setattr(memory, "never_used", lambda _: 1000)
        monkeypatch.setattr(memory, "peak_above_now", lambda _: 300)
        cache.after_micro_batch(tokens)
        assert cache.facts()["merge_cache"]["linears"] == kept
