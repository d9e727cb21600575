"""Names that Feast, redis-py, peft, transformers and torch keep to themselves, and which this package uses.

They may go with any upgrade. The list is here alone and complete: a name that it lacks fails a test.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import pkgutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STORE = "feast.infra.online_stores.redis:RedisOnlineStore"
FUNCTIONS = [  # module:object.name, which exists
    "feast.utils:_get_cached_request_context",
    "feast.utils:_populate_result_rows_from_columnar",
    "feast.utils:_drop_unneeded_columns",
    "feast.metrics:_config",
    f"{STORE}._get_client",
    f"{STORE}._get_client_async",
    f"{STORE}._parse_connection_string",
    f"{STORE}._build_feature_types",
    f"{STORE}._read_features_per_fv",
    "feast.infra.compute_engines.local.compute:LocalComputeEngine._materialize_one",
    "feast.infra.offline_stores.dask:DaskRetrievalJob._to_arrow_internal",
    "feast.infra.registry.file:FileRegistryStore._write_registry",
    "redis._parsers.hiredis:NOT_ENOUGH_DATA",
    "peft.tuners.lora.layer:LoraVariant",
    "transformers.integrations.sdpa_attention:sdpa_attention_forward",
    "transformers.masking_utils:sdpa_mask",
    "transformers.models.qwen3_vl.modeling_qwen3_vl:Qwen3VLTextModel._deepstack_process",
    "torch:ops.aten._scaled_dot_product_flash_attention",
    "torch:cpu._is_avx512_bf16_supported",
    "torch:cpu._is_amx_tile_supported",
    "torch:UntypedStorage._cdata",
]
ATTRIBUTES = [  # module:class.name, which its methods set or read
    "feast.online_response:OnlineResponse._feature_types",
    "feast.infra.registry.file:FileRegistryStore._filepath",
    "feast.infra.registry.registry:Registry._registry_store",
    "redis.connection:AbstractConnection._sock",
    "redis.connection:AbstractConnection._parser",
    "redis._parsers.hiredis:_HiredisParser._reader",
    "transformers.configuration_utils:PreTrainedConfig._attn_implementation",
]


def plain(place: str) -> str:
    library = place.split(".")[0].split(":")[0]
    return (
        f"{library} {importlib.metadata.version(library)} has no {place}, which sda-features uses. See what it became, "
        "or leave this release out of the range in pyproject.toml."
    )


@pytest.mark.parametrize("place", FUNCTIONS)
def test_a_private_name_is_still_there(place: str) -> None:
    try:
        pkgutil.resolve_name(place)
    except (AttributeError, ImportError):
        pytest.fail(plain(place))


@pytest.mark.parametrize("place", ATTRIBUTES)
def test_a_private_attribute_is_still_there(place: str) -> None:
    owner, _, name = place.rpartition(".")
    try:
        used = f".{name}" in inspect.getsource(pkgutil.resolve_name(owner))
    except (AttributeError, ImportError):
        used = False
    assert used, plain(place)


def test_the_list_is_complete() -> None:
    """Every `x._name` of the sources whose name no code of ours defines."""
    used: dict[str, str] = {}
    ours: set[str] = set()
    for path in [*(ROOT / "sda_features").rglob("*.py"), *(ROOT / "cli").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr[1] != "_":
                if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                    ours.add(node.attr)
                else:
                    used[node.attr] = str(path.relative_to(ROOT))
    listed = {place.rpartition(":")[2].rpartition(".")[2] for place in [*FUNCTIONS, *ATTRIBUTES]}
    assert not {name: path for name, path in used.items() if name not in ours | listed}
