"""The commands: stages, distillation, training, evaluation and export."""
