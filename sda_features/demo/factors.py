"""The latent factors of the generated shop: what decides a user's choice, and who can see it.

A product is one level of each factor. A picture shows some factors, a text names others, and both
show `kind`, `shape` and `colour`. Those align across modalities exactly; a use's typical pattern
aligns them in part; the rest makes each modality worth having. Words in a list are synonyms: a text
uses one of them at random.
"""

from __future__ import annotations

from dataclasses import dataclass

from sda_features.config import Modality


@dataclass(frozen=True)
class Factor:
    """One property of a product.

    Attributes:
        name: what the property is called.
        levels: its values.
        shown_in: the modalities that show it.
        weight: standard deviation of a user's preference over its levels, in logits.
    """

    name: str
    levels: tuple[str, ...]
    shown_in: tuple[Modality, ...]
    weight: float


KINDS: dict[str, tuple[str, tuple[str, ...]]] = {  # kind -> (category, nouns)
    "mug": ("Kitchen > Drinkware", ("mug", "cup")),
    "bottle": ("Kitchen > Drinkware", ("bottle", "flask")),
    "teapot": ("Kitchen > Tableware", ("teapot", "tea jug")),
    "bowl": ("Kitchen > Tableware", ("bowl", "dish")),
    "chair": ("Furniture > Seating", ("chair", "seat")),
    "table": ("Furniture > Surfaces", ("table", "desk")),
    "shelf": ("Furniture > Storage", ("shelf", "bookcase")),
    "basket": ("Furniture > Storage", ("basket", "hamper")),
    "lamp": ("Living > Lighting", ("lamp", "light")),
    "candle": ("Living > Lighting", ("candle", "taper")),
    "clock": ("Living > Decoration", ("clock", "timepiece")),
    "vase": ("Living > Decoration", ("vase", "urn")),
}
SHAPES: dict[str, tuple[str, ...]] = {
    "slim": ("slim", "narrow", "slender"),
    "regular": ("regular", "classic", "standard"),
    "wide": ("wide", "broad", "roomy"),
}
COLOURS: dict[str, tuple[int, int, int]] = {  # RGB, 0 to 255
    "red": (204, 52, 48),
    "orange": (236, 140, 34),
    "yellow": (232, 204, 50),
    "green": (62, 146, 70),
    "blue": (46, 96, 190),
    "purple": (130, 66, 166),
    "brown": (120, 78, 48),
    "black": (44, 44, 50),
}
PATTERNS = ("plain", "stripes", "dots", "checks")
MATERIALS: dict[str, tuple[str, ...]] = {
    "oak": ("oak", "oakwood"),
    "steel": ("steel", "stainless steel"),
    "ceramic": ("ceramic", "stoneware"),
    "glass": ("glass", "clear glass"),
    "bamboo": ("bamboo", "bamboo fibre"),
    "brass": ("brass", "polished brass"),
}
TIERS: dict[str, tuple[str, ...]] = {  # the tier is never spelled out: only the brand tells it
    "budget": ("Plainly", "Dayform", "Kubb", "Nooka", "Tiddle", "Basiq"),
    "middle": ("Halden", "Morrow", "Fernhill", "Ostra", "Lindqvist", "Juno"),
    "luxury": ("Aurelle", "Castellan", "Vantierre", "Sovrano", "Belmarq", "Ondine"),
}
USES: dict[str, tuple[str, ...]] = {
    "outdoor": ("camping trips and open fires", "picnics in the park", "long days on the terrace"),
    "study": ("quiet reading corners", "late nights of study", "a tidy home office"),
    "party": ("dinner with many guests", "birthday parties", "festive evenings"),
    "children": ("busy family mornings", "children's rooms", "little hands"),
    "gift": ("weddings and anniversaries", "a thoughtful present", "a first home"),
}

# How a look goes with a wording: a product takes the typical one with this probability, else any.
TYPICAL_SHARE = 0.6
TYPICAL_COLOURS: dict[str, tuple[str, ...]] = {
    "oak": ("brown", "orange"),
    "steel": ("black", "blue"),
    "ceramic": ("red", "purple"),
    "glass": ("blue", "green"),
    "bamboo": ("green", "yellow"),
    "brass": ("yellow", "orange"),
}
TYPICAL_PATTERN = {
    "outdoor": "checks",
    "study": "plain",
    "party": "stripes",
    "children": "dots",
    "gift": "plain",
}

FACTORS: tuple[Factor, ...] = (
    Factor("kind", tuple(KINDS), ("text", "image"), 2.4),
    Factor("shape", tuple(SHAPES), ("text", "image"), 1.8),
    Factor("colour", tuple(COLOURS), ("text", "image"), 2.8),
    Factor("pattern", PATTERNS, ("image",), 1.0),
    Factor("material", tuple(MATERIALS), ("text",), 1.0),
    Factor("tier", tuple(TIERS), ("text",), 1.0),
    Factor("use", tuple(USES), ("text",), 1.0),
)


def columns_shown_in(*modalities: Modality) -> list[int]:
    """Positions in `FACTORS` of those that at least one of `modalities` shows."""
    return [i for i, factor in enumerate(FACTORS) if set(factor.shown_in) & set(modalities)]
