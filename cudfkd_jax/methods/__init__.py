"""Distillation methods behind one contract (`base.Method`)."""

METHODS = ("cudfkd", "dafl", "zskt", "dfad", "dfq", "adi", "cmi", "mb_dfkd", "pre_dfkd")
