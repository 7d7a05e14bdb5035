"""What every section of the study file shares: strictness, and the types of its values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from fedkd.registry import (
    ARCHITECTURES,
    PREFIXES,
    TORCHVISION_SETS,
    check_architecture,
    check_source,
    suggest,
)

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Rate = Annotated[float, Field(gt=0, le=1000)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Architecture = Annotated[
    str,
    AfterValidator(check_architecture),
    Field(json_schema_extra={"examples": [*ARCHITECTURES, "torchvision:resnet18"]}),
]
Source = Annotated[
    str,
    AfterValidator(check_source),
    Field(json_schema_extra={"examples": ["digits", *TORCHVISION_SETS, *PREFIXES]}),
]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """A mapping of the study file: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        """Name the nearest valid key, and catch YAML's yes and no where a number is meant."""
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
    """Refuse a boolean, or a list that holds one, where something else is meant."""
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(item, bool):
            path = f"{key}.{index}" if isinstance(value, list) else key
            raise PydanticCustomError(
                "not_a_switch",
                "{value} is no value for this key: YAML reads a bare yes, no, on or off so",
                {"key": path, "value": str(item).lower()},
            )
