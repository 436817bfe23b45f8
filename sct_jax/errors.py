"""The one exception and the one warning a user is meant to read, and the exit status of what a restart may help."""

RESTART = 75  # EX_TEMPFAIL


class UserError(Exception):
    """A mistake of the user's: its message is one clear line that says what to do.

    The command line prints the message without a traceback and exits with status 2 (``--debug`` shows the traceback).
    """


class SamplingWarning(UserWarning):
    """Samples are drawn, but perhaps not as the user means: one line. The command line prints it on stderr."""
