"""The one exception that programs show without a traceback."""


class InputError(ValueError):
    """The user's input is at fault; the message names the culprit and the fix."""
