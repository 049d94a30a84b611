"""The measurements of `scripts/benchmark.py`.

`timing` alternates between the programs of `ours` and `peers`; `costs` and `ceilings` give the hardware's limits.
`measure` combines them and `table` formats the result.
"""
