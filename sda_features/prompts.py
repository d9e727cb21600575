"""The two prompts of an item (paper, section 2.1): pure strings; chat templates are the backbone's."""

from __future__ import annotations

from collections.abc import Mapping

from sda_features.config import PromptSettings


def text_prompt(fields: Mapping[str, str], settings: PromptSettings) -> str | None:
    """One instruction line, then `field is value` pairs joined by "; ", each value cut.

    Args:
        fields: column -> value in prompt order; underscores in column names read as spaces.
        settings: the instruction and the length at which a value is cut, in characters.

    Returns:
        The prompt, or None when no field has a value: such an item has no text vector.
    """
    pairs = [
        f"{name.replace('_', ' ')} is {value[: settings.max_field_chars]}"
        for name, value in fields.items()
        if value
    ]
    return f"{settings.text_instruction}\n{'; '.join(pairs)}" if pairs else None
