"""The one exception for a user's mistake.

Whatever raises it names the file, line, field or flag, what was found and what would be right, in one line. Scripts
print that line and exit with code 2; a library user catches it as a ValueError.
"""


class InputError(ValueError):
    """A mistake in what the user gave: data, flags, or a checkpoint that does not fit."""

    def __init__(self, message: str = ''):
        """Takes the message; names in it may have line breaks, and it is one line all the same."""
        super().__init__(' '.join(str(message).splitlines()))
