"""The one exception a user is meant to read."""


class UserError(ValueError):
    """What the user can mend. Its text is one line that names the thing and the fix; jobs print it and exit 1."""
