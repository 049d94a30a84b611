"""What a command does: stages, distillation, training, evaluation and export."""
