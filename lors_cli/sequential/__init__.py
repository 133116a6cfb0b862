"""Sequential calibration: each block of a model is pruned by what the pruned blocks before it make of the text.

`engine` says what happens to a block, `loop` takes the blocks in turn, `gather` collects the statistics of their
inputs, and `prune_linears` calls the pruning method. `recipe` holds what a config asks for each linear. `structured`
makes blocks smaller instead.
"""
