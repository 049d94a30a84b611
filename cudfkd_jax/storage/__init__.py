"""Files: workdirs, records, checkpoints, weights and other libraries' formats."""
