"""The one exception that a user of the command line is meant to read."""


class UserError(Exception):
    """Something the user asked for cannot be done.

    The message is one line: what was wrong, the names or numbers involved, and what to do about
    it. The command line prints it as ``error: …`` and exits with status 2, without a traceback.
    """
