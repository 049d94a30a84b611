"""Distillation methods behind one contract (`base.Method`)."""

METHODS = ("cudfkd",)
