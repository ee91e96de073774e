"""Errors for the user. Jobs print the message, one line that names the problem and the fix, and exit with status 1.

None of these is a ValueError, so code that catches a parser's or decoder's ValueError never hides a storage outage.
"""


class UserError(Exception):
    """An error that the user can fix."""


class StorageError(UserError):
    """Storage did not do what was asked of it: an outage, a missing right, a full disk. Says nothing about a file."""


class InvalidFile(UserError):
    """A file arrived whole and is not what it should be: damaged, of another kind, or crafted."""
