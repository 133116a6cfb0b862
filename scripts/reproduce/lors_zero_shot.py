"""LoRS (arXiv 2501.08582): zero-shot accuracy of pruned models recovered on Alpaca, by method, pruning and pattern."""

from common import LORA, LORS, SPP, SQFT, Table, reproduce, sparse

PRUNINGS = tuple(sparse(method, sparsity) for method in ("sparsegpt", "wanda") for sparsity in ("2:4", "0.5"))

if __name__ == "__main__":
    reproduce(Table(__doc__.rstrip("."), ("llama-2-7b", "llama-3-8b"), PRUNINGS, (LORA, SPP, SQFT, LORS)))
