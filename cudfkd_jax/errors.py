"""The one exception a user is meant to see."""


class UserError(Exception):
    """Something the user can mend; its text is one line: what is wrong, the value seen, what to do.

    The command line prints the text and leaves with status 2; library callers catch it as any exception.
    """
