"""What models read of an item (paper, section 2.1): pure strings; chat templates and tokens are the model's."""

from __future__ import annotations

from collections.abc import Mapping

from sda_features.config import PromptSettings


def text_prompt(fields: Mapping[str, str], settings: PromptSettings) -> str | None:
    """Prompt of an LVM: one instruction line, then `field is value` pairs joined by "; ", each value cut.

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


def caption(fields: Mapping[str, str], settings: PromptSettings) -> str | None:
    """Text of a dual encoder such as CLIP, which has learned from captions: the values, joined by ", ".

    Args:
        fields: column -> value, the most telling ones first: what follows may be past the model's limit.
        settings: the length at which a value is cut, in characters; instructions do not count.

    Returns:
        The caption, or None when no field has a value.
    """
    return ", ".join(value[: settings.max_field_chars] for value in fields.values() if value) or None
