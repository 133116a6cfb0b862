"""``lors sweep``: many runs of one experiment, compared with each other.

A run is an ordinary experiment in a directory of its own, performed by `pipeline`, so that the same command skips what
is finished and goes on with what was interrupted. There are two forms, of which `sweep` performs either:

    lors sweep CONFIG key=a,b ...   a grid over one config     grid, grid_perform, grid_results
    lors sweep SWEEP.yaml           arms, seeds and a budget   sweep_file, study, study_perform, study_results
"""
