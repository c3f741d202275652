"""The exceptions that a person is meant to read: one line, what is wrong and what to do."""


class UserError(Exception):
    """Something that the user can put right. Exit status 1."""


class BadSetting(UserError):  # noqa: N818
    """A word of the command line, or of a configuration file, that cannot be right. Exit status 2."""
