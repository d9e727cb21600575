"""Base of all settings, and the types of their fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sda_features.errors import SettingsError

MANY = 1_000_000_000  # more than any count of steps, rows or pixels; keeps typing errors out
Modality = Literal["text", "image"]
MODALITIES: tuple[Modality, ...] = ("text", "image")
WIDEST = 65_536  # of a layer or a vector
SEED = 2**32 - 1  # what numpy and torch both take
DEVICE = r"^(auto|cpu|meta|mps|(cuda|xpu)(:\d{1,3})?)$"

Count = Annotated[int, Field(gt=0, le=MANY)]
Width = Annotated[int, Field(gt=0, le=WIDEST)]
Seed = Annotated[int, Field(ge=0, le=SEED)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Temperature = Annotated[float, Field(ge=1e-3, le=100)]
Device = Annotated[str, Field(pattern=DEVICE)]


class Settings(BaseModel):
    """Base of all settings: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def parse(cls, **values: Any) -> Self:
        """Build the settings, turning every validation fault into one `SettingsError`."""
        try:
            return cls(**values)
        except ValidationError as error:
            faults = [
                f"{'.'.join(str(part) for part in fault['loc']) or cls.__name__}: "
                f"{fault['msg']} (got {fault['input']!r})"
                for fault in error.errors()
            ]
            raise SettingsError("\n".join(["These settings are not usable:", *faults])) from None
