"""The wire format is etcd's: every message, field, number, type, enum and method."""

import re
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor

from raftkv.pb import auth_pb2, kv_pb2, log_pb2, peer_pb2, rpc_pb2, v3election_pb2, v3lock_pb2

MODULES = (auth_pb2, kv_pb2, log_pb2, peer_pb2, rpc_pb2, v3election_pb2, v3lock_pb2)
EXPECTED = (Path(__file__).parent / "data" / "etcd_api.txt").read_text().splitlines()
PROTO = Path(__file__).parents[2] / "proto"
POOL = descriptor_pool.Default()


def describe(field: FieldDescriptor) -> str:
    names = {value: name[5:].lower() for name, value in vars(FieldDescriptor).items() if name.startswith("TYPE_")}
    kind = field.message_type or field.enum_type
    text = kind.full_name if kind else names[field.type]
    text = f"repeated {text}" if field.is_repeated else text
    oneof = f" oneof {field.containing_oneof.name}" if field.containing_oneof else ""
    return f"field {field.full_name} {field.number} {text}{oneof}"


@pytest.mark.parametrize("line", EXPECTED, ids=lambda line: line.split()[1])
def test_the_api_is_etcds(line: str) -> None:
    kind, name, *rest = line.split()
    if kind == "field":
        assert describe(POOL.FindFieldByName(name)) == line
    elif kind == "enum":
        values = POOL.FindEnumTypeByName(name).values
        assert [f"{value.name}={value.number}" for value in values] == rest
    else:
        service, _, method = name.rpartition(".")
        found = POOL.FindServiceByName(service).methods_by_name[method]
        request, response = found.input_type.name, found.output_type.name
        sides = (["stream"] if found.client_streaming else []) + [request]
        assert [*sides, *(["stream"] if found.server_streaming else []), response] == rest


def test_nothing_is_added_to_etcds_messages() -> None:
    known = {line.split()[1] for line in EXPECTED if line.startswith("field")}
    for module in (auth_pb2, kv_pb2, rpc_pb2, v3election_pb2, v3lock_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            assert {field.full_name for field in message.fields} <= known


@pytest.mark.parametrize("path", sorted(PROTO.rglob("*.proto")), ids=lambda path: path.stem)
def test_every_field_is_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s+(repeated )?[\w.]+ \w+ = \d+;", line):
            assert "//" in line or lines[number - 1].strip().startswith("//"), f"{path.name}:{number + 1}: {line}"
