"""What every section of the study file shares: strictness, and the types of its values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fedkd.registry import ARCHITECTURES, SOURCES
from fedkd.suggestions import suggest
from fedkd.util.name_registry import OWN, Registry

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Rate = Annotated[float, Field(gt=0, le=1000)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


def names_of(registry: Registry) -> Any:
    """Return a field of a registry's names, which editors complete and check."""
    forms = [f"{text}{prefix.form}" for text, prefix in registry.prefixes.items()]
    pattern = "|".join([*registry, *(f"{text}.+" for text in registry.prefixes), OWN])
    return Field(json_schema_extra={"examples": [*registry, *forms], "pattern": f"^({pattern})$"})


Architecture = Annotated[str, AfterValidator(ARCHITECTURES.check), names_of(ARCHITECTURES)]
Source = Annotated[str, AfterValidator(SOURCES.check), names_of(SOURCES)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _check_options(options: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for name in options:
        if not name.isidentifier():
            raise ValueError(f"{name!r} cannot be the name of a parameter")
    return options


Options = Annotated[
    dict[str, JsonValue], AfterValidator(_check_options), WithJsonSchema({"type": "object"})
]
"""Keyword arguments of a function of the user's own: scalars, lists and mappings."""


def refuse_options(options: dict[str, JsonValue] | None, registry: Registry, name: str) -> None:
    """Refuse options of a name that stands for nothing of the user's own."""
    if options and not registry.is_own(name):
        raise ValueError(
            f"options: are for a {registry.kind} of your own ({registry.own}), not {name}"
        )


class Section(BaseModel):
    """A mapping of the study file: frozen; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        """Name the nearest valid key; refuse YAML's yes and no where a number is expected."""
        if not isinstance(data, dict):
            return data
        for key, value in data.items():
            if key not in cls.model_fields:
                hint = suggest(str(key), list(cls.model_fields))
                hint = hint or f"; known are {', '.join(cls.model_fields)}"
                raise PydanticCustomError(
                    "unknown_key", "unknown key{hint}", {"key": str(key), "hint": hint}
                )
            if cls.model_fields[key].annotation is not bool:
                _refuse_switch(str(key), value)
        return data


def _refuse_switch(key: str, value: Any) -> None:
    """Refuse a boolean, or a list with one, where another type is expected."""
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(item, bool):
            path = f"{key}.{index}" if isinstance(value, list) else key
            raise PydanticCustomError(
                "not_a_switch",
                "{value} is not valid here: YAML reads a bare yes, no, on or off as true or false",
                {"key": path, "value": str(item).lower()},
            )
