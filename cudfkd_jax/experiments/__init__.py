"""Sets of runs: planning, launching, comparisons, sweeps and timing."""
