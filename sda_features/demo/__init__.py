"""The demo's generated world: a shop catalogue, its purchases and a tiny vision-language model."""
