"""Errors that the user can correct: one line with the value, the limit and the cure."""


class InputError(ValueError):
    """The user gave something that cannot be used. The message is one line with the value, the limit and the cure.

    The command line prints it without a traceback and ends with exit code 2; a library caller catches `ValueError`.
    """
