"""The commands of many runs: `cudfkd compare`, `sweep` and `reproduce`."""
