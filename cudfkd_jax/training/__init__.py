"""The run state, the step functions, the loops over them, and the trainer."""
