"""What the tables and curves of LoRAM (arXiv 2502.13533) share: models, siblings, and the four ways of pruning."""

from functools import partial

from common import Arm, Pruning, Table

STRUCTURED = ("prune.sparsity=null", "prune.ratio=0.5")

LORAM = partial(
    Table,
    models=("llama-2-13b", "llama-2-70b", "llama-3.1-70b"),
    prunings=(
        Pruning("rand", "loram/{}_rand.yaml", smollm2=("prune.method=structured_random", *STRUCTURED)),
        Pruning("stru", "loram/{}_stru.yaml", smollm2=("prune.method=structured_taylor", *STRUCTURED)),
        Pruning("semi", "loram/{}_semi.yaml"),
        Pruning("unst", "loram/{}_unst.yaml", smollm2=("prune.sparsity=0.5",)),
    ),
    whole=(Arm("lora", ("recover=null", "merge.dense=true")),),
    siblings={
        "llama-2-13b": "meta-llama/Llama-2-7b-hf",
        "llama-2-70b": "meta-llama/Llama-2-13b-hf",
        "llama-3.1-70b": "meta-llama/Llama-3.1-8B",
    },
    smollm2="smollm2-135m_loram.yaml",
    stages=("prune", "align"),
)
