"""Errors for the user. Jobs print the message, one line that names the problem and the fix, and exit with status 1.

None of these is a ValueError, so code that catches a parser's or decoder's ValueError never hides a storage outage.
"""


class UserError(Exception):
    """An error that the user can fix."""


class StorageError(UserError):
    """A storage operation failed: an outage, a missing permission, a full disk. The file itself may be fine."""


class InvalidFile(UserError):
    """A file was read completely, but its content is wrong: damaged, of another kind, or malicious."""
