"""The comparison with the released code: its own functions beside ours, with the same weights and the same draws.

`released` imports the releases from where the user has them; `replay` feeds them our draws and reads their local
variables; `networks` makes networks of theirs and carries weights over; `ours` builds our side from `configs/`.
A module for each method holds its cases, `cases` lists them, and `rows` says what is equal. Nothing of the
releases is part of this project.
"""
