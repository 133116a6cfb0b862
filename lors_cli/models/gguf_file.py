"""A GGUF file as a Hugging Face directory, with every tensor and every setting of it used, or refused by name.

transformers reads such files, but passes over tensors and metadata that it does not know: scaled rotary frequencies
come out unscaled. What llama.cpp computes with is in the keys under the architecture's name and in the tensors; here
each of them is given to the config, or found to say what the config says already.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lors_cli.artifacts import temporary
from lors_cli.errors import RequestError, request_error
from lors_cli.models.gguf_rope import FACTORS, Rope

# The config's names for what a key means, the first that a config has.
SETTINGS: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings",),
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
}
REQUIRED = ("context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count")
# Values that mean nothing is done, of keys that transformers has no place for.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "logit_scale": (1.0,),
    "embedding_scale": (1.0,),
    "residual_scale": (1.0,),
    "pooling_type": (0,),
}
# Splits of text, besides those that transformers knows, that GPT-2's stands for: those after the first five also split
# digits, across which their vocabularies have no merges.
GPT2_SPLITS = (
    *("default", "gpt-2", "mpt", "olmo", "jais"),
    *("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"),
)
INFORMATIVE = ("tensor_data_layout", "rope.scaling.finetuned")
# llama.cpp scales the queries of the largest Gemma 2 and 3 otherwise, and tells them by their depth.
SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
EXPECTED = "a GGUF file of which transformers' model takes every tensor and every setting"
REMEDY = "use the model's Hugging Face directory"


class GgufFile:
    """A GGUF file whose header was read; `key` names it in a request.

    Raises:
        RequestError: it is one of several parts, or not a language model.

    """

    def __init__(self, path: Path, key: str) -> None:
        from gguf import GGUFReader

        self.path, self._key = path, key
        reader = GGUFReader(path)
        self.metadata: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self.architecture = str(self.metadata["general.architecture"])
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        if int(self.metadata.get("split.count", 1)) > 1:
            got = f"{path}, one of {self.metadata['split.count']} parts"
            remedy = "join them first: llama-gguf-split --merge FIRST_PART WHOLE"
            raise request_error(key, "a whole GGUF file", got, remedy)
        if self.metadata.get("general.type", "model") != "model":
            raise self.refused(f"general.type {self.metadata['general.type']!r}")

        self._check_split()

    def _check_split(self) -> None:
        """Refuse a way of splitting text before byte-level merges that transformers would replace by GPT-2's."""
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

        split = self.metadata.get("tokenizer.ggml.pre", "default")
        known = split in GGUF_PRE_TOKENIZER_SPLITS or split in GPT2_SPLITS
        if self.metadata.get("tokenizer.ggml.model") == "gpt2" and not known:
            raise self.refused(f"tokenizer.ggml.pre = {split!r}")

    def refused(self, what: str) -> RequestError:
        """The error that names something in the file that transformers' model would not compute with."""
        return request_error(self._key, EXPECTED, f"{what} in {self.path}", REMEDY)

    def config(self) -> Any:
        """Transformers' config with all settings of the file.

        Raises:
            RequestError: one of them has no place in the config, or one that is needed is not in the file.

        """
        from transformers import AutoConfig

        with self._alone() as folder:
            config = AutoConfig.from_pretrained(folder, gguf_file=self.path.name)
        given = {
            name.removeprefix(f"{self.architecture}."): value
            for name, value in self.metadata.items()
            if name.startswith(f"{self.architecture}.")
        }
        # without it transformers would not undo the order in which llama.cpp keeps the rows of queries and keys
        needed = (*REQUIRED, *(["attention.head_count_kv"] if self.architecture == "llama" else []))
        if lacking := [name for name in needed if name not in given]:
            raise self.refused(f"no {self.architecture}.{lacking[0]}")
        given.setdefault("attention.head_count_kv", given["attention.head_count"])
        for name, value in given.items():
            if name not in INFORMATIVE and not name.startswith("rope.") and not self._settle(config, name, value):
                raise self.refused(
                    f"{self.architecture}.{name} = {value}, which {type(config).__name__} has no place for,"
                )
        if self.architecture in SCALED_BY_WIDTH:
            by_width = config.num_hidden_layers == SCALED_BY_WIDTH[self.architecture]
            config.query_pre_attn_scalar = (
                config.hidden_size // config.num_attention_heads if by_width else config.head_dim
            )
        for name, kind in (
            ("pad", "padding"),
            ("bos", "bos"),
            ("eos", "eos"),
        ):  # defaults are those of another tokenizer
            if isinstance(number := getattr(config, f"{name}_token_id", None), int) and number >= config.vocab_size:
                setattr(config, f"{name}_token_id", self.metadata.get(f"tokenizer.ggml.{kind}_token_id"))
        factors = {name: torch.tensor(self.tensors[name].data) for name in FACTORS if name in self.tensors}
        Rope(given, factors, self.refused).settle(config)
        return config

    @staticmethod
    def _settle(config: Any, name: str, value: Any) -> bool:
        """Make the config say what the file says; False where it cannot."""
        if isinstance(value, list):
            if len(set(value)) > 1:
                return False
            value = value[0]
        attribute = next((one for one in SETTINGS.get(name, ()) if hasattr(config, one)), None)
        if attribute is not None:
            if getattr(config, attribute) != value:
                setattr(config, attribute, value)
            return True
        width = config.hidden_size // config.num_attention_heads
        computed = {
            "attention.key_length": width,
            "attention.value_length": width,
            "attention.head_count_kv": config.num_attention_heads,
            "feed_forward_length": 4 * config.hidden_size,
            "context_length": value,  # a model without positions has no use for it
        }
        return value == computed.get(name) or value in NEUTRAL.get(name, ())

    @contextmanager
    def _alone(self) -> Iterator[Path]:
        """A folder with the file and nothing else: what lies beside it, such as an adapter's config, is not its own."""
        with temporary.directory("gguf") as folder:
            (folder / self.path.name).symlink_to(self.path.resolve())
            yield folder

    def tokenizer(self) -> Any:
        """Transformers' tokenizer of the file."""
        from transformers import AutoTokenizer

        with self._alone() as folder:
            return AutoTokenizer.from_pretrained(folder, gguf_file=self.path.name, trust_remote_code=False)

    def model(self) -> Any:
        """Transformers' model in float32: what the file's quantised values stand for.

        Raises:
            RequestError: the model does not take a tensor or a setting of the file, or needs one that it lacks.

        """
        from transformers import AutoModelForCausalLM

        with self._alone() as folder:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=self.path.name,
                config=self.config(),
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported below, by name
            )
        for what, names in (
            ("no tensor for", report["missing_keys"]),
            ("another shape of", [name for name, *_ in report["mismatched_keys"]]),
            ("the tensor", [*report["unexpected_keys"], *self._not_taken(model)]),
        ):
            if names:
                raise self.refused(f"{what} {min(names)}")
        return model

    def _not_taken(self, model: Any) -> list[str]:
        """The names of tensors that transformers passes over."""
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
        from transformers.quantizers.quantizer_gguf import is_gguf_arch_supported

        if is_gguf_arch_supported(self.architecture):  # then its report names them
            return []
        processor = TENSOR_PROCESSORS.get(self.architecture, TensorProcessor)(config=model.config.to_dict())
        taken = get_gguf_hf_weights_map(model, processor)
        return [name for name in self.tensors if name not in taken and name not in FACTORS]
