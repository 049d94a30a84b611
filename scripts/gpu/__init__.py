"""Checks, measurements and runs for a quarter of an hour on a GPU.

`command` lists the steps of `sanity`, `speed`, `runs` and `flags`; `session` divides the time among them and keeps
their results. The steps start the programs `checks`, `ahead`, `kernels`, `untrained` and `fitted`.
"""
