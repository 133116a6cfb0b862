"""LoRAM (arXiv 2502.13533): perplexity over training steps, with and without recovery, with and without alignment.

These are figures 3, 5 and 6; figure 4 is the same on OpenOrca (train.dataset=...). The learning rate is constant after
its warm-up, so a shorter training is the beginning of a longer one. SmolLM2 has no smaller sibling.
"""

from common import Arm, reproduce
from loram import LORAM

if __name__ == "__main__":
    reproduce(
        LORAM(
            title=__doc__.rstrip(".\n"),
            # tuned is the small model with its adapter, without recovery
            arms=(
                Arm("with-alignment", start="aligned", models="tuned,merged"),
                Arm("without-alignment", models="tuned,merged"),
            ),
            settings=("eval.preset=null", "eval.tasks=[]"),
            steps={"paper": (50, 100, 200, 400), "smollm2": (5, 10, 20)},
        )
    )
