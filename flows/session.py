"""How this invocation of the command line shows itself; set once from its options."""

from dataclasses import dataclass


@dataclass
class Session:
    """`as_json`: the result alone, as JSON, on standard output."""

    verbose: bool = False
    as_json: bool = False


session = Session()
