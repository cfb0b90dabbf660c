"""Features to be looked up by key: what a platform is told to publish, and what the data plane then serves."""

from typing import Any, Literal

from pydantic import Field

from deployments.declared import Declared

ValueKind = Literal["boolean", "long", "double", "string", "datetime"]


class OnlineFeatureSet(Declared):
    """The columns of one feature table that are published, with the kinds that the model takes them as.

    `hashed` are columns whose values are keyed digests: callers name them as they are, and they are hashed before
    they are looked up. `default` is what an unknown key has; without it, an unknown key is refused.
    """

    snapshot: str
    as_of: str
    entity: dict[str, ValueKind] = Field(min_length=1)
    columns: dict[str, ValueKind] = Field(min_length=1)
    hashed: tuple[str, ...] = ()
    default: dict[str, Any] | None = None


class PublishedFeatures(Declared):
    """What now stands to be looked up; `unkeyed` rows had no whole key and were left out."""

    endpoint: str
    snapshot: str
    as_of: str
    rows: int
    unkeyed: int
    store: str
