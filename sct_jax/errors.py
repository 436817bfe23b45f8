"""The one exception a user is meant to read."""


class UserError(Exception):
    """A mistake of the user's: its message is one clear line that says what to do.

    The command line prints the message without a traceback and exits with status 2 (``--debug`` shows the traceback).
    """
