"""The errors that Contender raises for people: each message is a whole sentence, fit to be shown as it is."""


class ContenderError(Exception):
    """Something stopped the line. `exit_code` is what the command line ends with."""

    exit_code = 1


class BadInputError(ContenderError):
    """Data or arguments that the user must mend before the same command can succeed."""

    exit_code = 2


class SpecError(BadInputError):
    """A YAML document that does not say what it must; every problem in it stands on a line of its own."""


def first_line(error: Exception) -> str:
    """What a library's error says in its first line, or its name where it says nothing."""
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__
