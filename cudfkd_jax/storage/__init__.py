"""Files: workdirs, records, checkpoints, weights and the formats of other libraries."""
