from sda_features.catalog.prompts import caption, text_prompt
from sda_features.config import PromptSettings


def test_fields_become_pairs_cut_at_the_limit_in_order() -> None:
    settings = PromptSettings.parse(text_instruction="Say it.", max_field_chars=5)
    assert text_prompt({"main_title": "abcdefgh", "brand": "Oak"}, settings) == (
        "Say it.\nmain title is abcde; brand is Oak"
    )


def test_no_value_no_prompt() -> None:
    assert text_prompt({}, PromptSettings()) is None
    assert text_prompt({"title": ""}, PromptSettings()) is None


def test_a_caption_is_the_values_in_order_each_cut() -> None:
    settings = PromptSettings.parse(text_instruction="Say it.", max_field_chars=5)
    assert caption({"main_title": "abcdefgh", "colour": "", "brand": "Oak"}, settings) == "abcde, Oak"
    assert caption({}, settings) is None
    assert caption({"title": ""}, settings) is None
