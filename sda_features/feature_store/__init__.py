"""Feast: definitions of the item-vector views, the offline parts, and materialisation into the online store."""
