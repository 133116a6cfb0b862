import pytest
import torch

from lors_cli.config.methods import complete
from lors_cli.config.mixture import TrainingDataset
from lors_cli.config.train import Train
from lors_cli.errors import RequestError
from lors_cli.training.memory_estimate import Needs


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    section = complete(Train)(method="lors", dataset=TrainingDataset(path="python-topics"))
    with pytest.raises(RequestError, match="bfloat16 on Tesla T4"):
        Needs(trained=0, weights=0, cache=0, loss=0).check(section, "bfloat16", torch.device("cuda"))
