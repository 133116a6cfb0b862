"""LoRAM (arXiv 2502.13533): downstream accuracy of the original, LoRA on it and on a smaller sibling, and LoRAM.

These are tables 1 to 3. With SmolLM2 it is perplexity and a quiz, and there is no sibling, since none is smaller.
"""

from common import Arm, reproduce
from loram import LORAM

if __name__ == "__main__":
    arms = (Arm("loram", start="aligned"),)
    reproduce(LORAM(title=__doc__.rstrip(".\n"), arms=arms, presets=("loram-math", "humaneval")))
