"""SPP (arXiv 2405.16057): zero-shot accuracy at 75 % sparsity, unstructured and 2:8, SPP against masked LoRA."""

from common import LORA, SPP, Table, reproduce, sparse

PRUNINGS = tuple(sparse(method, sparsity) for method in ("sparsegpt", "wanda") for sparsity in ("0.75", "2:8"))

if __name__ == "__main__":
    reproduce(Table(__doc__.rstrip("."), ("llama-2-7b",), PRUNINGS, (LORA, SPP)))
