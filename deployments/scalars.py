"""What an unquoted YAML scalar means here: null, booleans and numbers as in YAML 1.2, anything else text."""

import re

TAG = "tag:yaml.org,2002:"
"""What the tags of YAML's own types begin with."""

# Numbers are written as in JSON: leading zeros, colons, underscores and bases mark an identifier or a time of
# day. The bound on digits keeps clear of Python's: int() refuses more than 4300.
SCALARS = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9]{0,999})\Z"), list("-+0123456789")),
    "float": (
        re.compile(
            r"(?:[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        list("-+.0123456789"),
    ),
}
"""For each kind its pattern, and the characters that a scalar of it can begin with."""
