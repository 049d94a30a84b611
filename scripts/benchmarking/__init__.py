"""What `scripts/benchmark.py` measures.

`ours` and `peers` are what is timed, in the turns of `timing`; `costs` and `ceilings` say how far it could go.
`measure` puts them together and `table` shows them.
"""
