"""LoRS (arXiv 2501.08582): what the start of the adapters is worth: gradient, random, and two other starts."""

from common import LORS, LORS_RANDOM, Arm, Table, reproduce, sparse

OTHERS = tuple(
    Arm(f"lors-{init}", ("train.method=lors", f"train.init={init}"), LORS.paper, rates)
    for init, rates in (("gradient_svd", LORS.smollm2), ("eva", LORS_RANDOM.smollm2))
)
PRUNINGS = (sparse("wanda", "2:4"), sparse("sparsegpt", "2:4"))

if __name__ == "__main__":
    arms = (LORS_RANDOM, *OTHERS, LORS)
    reproduce(Table(__doc__.rstrip("."), ("llama-2-7b", "llama-3-8b"), PRUNINGS, arms))
