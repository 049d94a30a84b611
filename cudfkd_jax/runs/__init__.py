"""The commands: stages, distillation, training, evaluation, export and timing."""
