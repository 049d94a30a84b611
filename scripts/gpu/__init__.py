"""What a quarter of an hour on a GPU is spent on.

`command` lists the steps, which are in `sanity`, `speed`, `runs` and `flags`; `session` shares the time among
them and keeps their results. `checks`, `ahead`, `kernels`, `untrained` and `fitted` are programs that the steps
start.
"""
