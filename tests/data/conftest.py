"""Tokenizers with the chat templates of families of models."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from tests.data import templates


@pytest.fixture(scope="module")
def make(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], PreTrainedTokenizerFast]:
    made = {family: templates.make(tokenizer, family) for family in templates.FAMILIES}
    return made.__getitem__
