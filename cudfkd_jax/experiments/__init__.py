"""Sets of runs: planning, launching, comparisons and sweeps."""
