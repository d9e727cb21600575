"""Feast: definitions of the item-vector views, the offline parts, and materialisation into the online store.

Feast marks its classes for typeguard, which at each start parses a module once for each of their
methods and compiles it anew: more than half of the 12 s that `import feast` takes. typeguard says of
itself that it is not meant for production, and does nothing under `python -O`; here it leaves out
Feast's classes alone, if Feast has not been imported before.
"""

import importlib.util
from typing import Any

if importlib.util.find_spec("typeguard"):  # comes with Feast
    import typeguard

    _typechecked: Any = typeguard.typechecked

    def _leave_feast_out(target: Any = None, **options: Any) -> Any:
        """`typeguard.typechecked`, but for classes and functions of Feast."""
        if str(getattr(target, "__module__", "")).startswith("feast."):
            return target
        return _typechecked(target, **options)

    typeguard.typechecked = _leave_feast_out
