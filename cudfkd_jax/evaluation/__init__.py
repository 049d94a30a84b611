"""Metrics, predictions, the evaluator, observations, diagnostics and summaries."""
