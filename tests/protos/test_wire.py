"""The generated modules are importable as they lie there, and say what the .proto says."""

import re
from pathlib import Path

import asymcir_protos
from asymcir_protos.v1 import retrieval_pb2, retrieval_pb2_grpc

PROTO = Path(asymcir_protos.__file__).parent / "v1" / "retrieval.proto"


def test_service_and_stub() -> None:
    service = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"]
    assert service.full_name == "asymcir.v1.Retrieval"
    for method in service.methods:
        assert hasattr(retrieval_pb2_grpc.RetrievalServicer, method.name)


def test_generated_fields_are_those_of_the_proto() -> None:
    messages = dict(re.findall(r"^message (\w+) \{(.*?)\}", PROTO.read_text(), re.MULTILINE | re.DOTALL))
    assert set(messages) == set(retrieval_pb2.DESCRIPTOR.message_types_by_name)
    for name, descriptor in retrieval_pb2.DESCRIPTOR.message_types_by_name.items():
        for field in descriptor.fields:
            assert re.search(rf"\b{field.name} = {field.number};", PROTO.read_text()), f"{name}.{field.name}"
