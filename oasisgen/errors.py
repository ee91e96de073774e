"""What a user is meant to read. Jobs print its one line and exit 1; it names the thing and the fix.

None of these is a ValueError: code that catches what a parser or a decoder says about bytes never catches an outage.
"""


class UserError(Exception):
    """What the user can mend."""


class StorageError(UserError):
    """Storage did not do what was asked of it: an outage, a missing right, a full disk. Says nothing about a file."""


class InvalidFile(UserError):
    """A file arrived whole and is not what it should be: damaged, of another kind, or crafted."""
