"""The comparison with the released code: its functions and ours on the same weights and the same random draws.

`released` imports the releases from the user's checkouts; `replay` feeds them our draws and reads their local
variables; `networks` builds their networks and converts the weights; `ours` builds our side from `configs/`. Each
method has a module with its cases; `cases` lists all of them, and `rows` decides what is equal. This project
contains no code of the releases.
"""
