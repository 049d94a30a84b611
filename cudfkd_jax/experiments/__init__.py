"""Many runs: their plan, their launcher, comparisons, sweeps and timing."""
