"""The one exception that speaks to a user: the command line prints its text as one line and exits with 1."""


class UserError(Exception):
    """Something the user can put right. The text says what is wrong, what was seen, what is accepted, what to do."""
