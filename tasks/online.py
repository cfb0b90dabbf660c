"""Online features: the champion's features of everyone as of now, where its endpoint looks them up by key.

They are built by the query that the champion was trained with, as batch scoring builds them, and published with the
types that it takes, so a key asked online gets what the same row of the feature table would have got.
"""

from collections.abc import Mapping
from datetime import datetime

from deployments.contract import ColumnType
from deployments.declared import Declared
from deployments.online_features import OnlineFeatureSet, ValueKind
from deployments.spec import LoadedSpec, ModelSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.champion import ChampionRef
from tasks.features import build_features
from tasks.frame import input_schema

_KEY_KINDS: Mapping[ColumnType, ValueKind] = {
    ColumnType.STRING: "string",
    ColumnType.INTEGER: "long",
    ColumnType.NUMBER: "double",
    ColumnType.BOOLEAN: "boolean",
    ColumnType.TIMESTAMP: "datetime",
    ColumnType.DATE: "datetime",
}


class OnlineOutcome(Declared):
    """What an endpoint now looks up: whose features, as of when, of how many keys; rows without a key were left out."""

    endpoint: str
    name: str
    version: str
    snapshot: Snapshot
    as_of: datetime
    rows: int
    unkeyed: int


def publish_features(
    loaded: LoadedSpec,
    platform: Platform,
    champion: ChampionRef,
    silver: Mapping[str, Snapshot],
    as_of: datetime,
    endpoint: str,
) -> OnlineOutcome:
    """Build a champion's features as of one moment, and publish them for its endpoint.

    Args:
        loaded: the spec and the query that the champion was trained with.
        platform: where the tables are, and who publishes.
        champion: whose features they are.
        silver: the valid tables to build them from.
        as_of: the moment to look from, in UTC.
        endpoint: where they are looked up.

    Raises:
        BadInputError: the query fails, or several rows have the same key.
    """
    snapshot = build_features(loaded, platform, silver, as_of)
    published = platform.publish_online(
        endpoint, snapshot, online_features(loaded.spec, str(snapshot), as_of)
    )
    return OnlineOutcome(
        endpoint=endpoint,
        name=champion.name,
        version=champion.version,
        snapshot=snapshot,
        as_of=as_of,
        rows=published.rows,
        unkeyed=published.unkeyed,
    )


def online_features(spec: ModelSpec, snapshot: str, as_of: datetime) -> OnlineFeatureSet:
    """Which columns of a feature table are looked up: the key as declared, the features as the model takes them."""
    declared = spec.feature_contract.columns
    kinds: dict[str, ValueKind] = {column.name: column.type.name for column in input_schema(spec).inputs}
    return OnlineFeatureSet(
        snapshot=snapshot,
        as_of=as_of.isoformat(),
        entity={name: _KEY_KINDS[declared[name].type] for name in spec.features.entity},
        columns=kinds,
        hashed=tuple(
            name for name in dict.fromkeys((*spec.features.entity, *kinds)) if declared[name].pii == "hash"
        ),
        default=_default(spec, kinds) if spec.serving.unknown_key == "default" else None,
    )


def _default(spec: ModelSpec, kinds: Mapping[str, ValueKind]) -> dict[str, object]:
    """The declared defaults as the model takes them: a category is text, whatever its type in the table."""
    return {
        name: _category(value) if kinds[name] == "string" else value
        for name, value in spec.serving.defaults.items()
    }


def _category(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
