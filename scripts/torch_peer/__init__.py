"""CuDFKD's round in PyTorch, written from its equations: what the benchmark compares the package with.

`models` and `generator` are the package's networks under the same names, `losses` the terms of the objectives,
`rounds` the round as one would first write it, and `tuned` the same made fast.
"""
