"""CuDFKD's round in PyTorch, written from its equations, as the benchmark's point of comparison.

`models` and `generator` contain the package's networks under the same names, `losses` the terms of the objectives,
`rounds` a plain implementation of the round, and `tuned` an optimised one.
"""
