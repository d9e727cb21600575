"""The Redis layout as stock Feast's own serialisers write it, one value at a time."""

from datetime import datetime

from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from google.protobuf.timestamp_pb2 import Timestamp


def key(project, join_key, item_id, id_type):
    value = Value(**{f"{id_type}_val": item_id})
    return _redis_key(project, EntityKey(join_keys=[join_key], entity_values=[value]))


def field(view, feature):
    return _mmh3(f"{view}:{feature}")


def vector(values):
    return (Value() if values is None else Value(float_list_val=FloatList(val=values))).SerializeToString()


def string(text):
    return (Value() if text is None else Value(string_val=text)).SerializeToString()


def bytes_value(payload):
    return Value(bytes_val=payload).SerializeToString()


def timestamp(time: datetime):
    proto = Timestamp()
    proto.FromDatetime(time)
    return proto.SerializeToString()


def read_vector(encoded):
    return list(Value.FromString(encoded).float_list_val.val)
