"""The exceptions that a person is meant to read: one line, what is wrong and what to do."""


class UserError(Exception):
    """Something that the user can put right. Exit status 1."""


class BadSetting(UserError):  # noqa: N818
    """A word of the command line, or of a configuration file, that cannot be right. Exit status 2."""


def of_another_process(error: Exception) -> bool:
    """Whether a process that computes together with others waited for one that is gone."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)
