"""The base of everything declared in YAML: frozen, and with no key that nobody reads."""

from pydantic import BaseModel, ConfigDict


class Declared(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, ser_json_inf_nan="strings", allow_inf_nan=True
    )
