from hasfaas.wire.v1 import payload_pb2 as _payload_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UserError(_message.Message):
    __slots__ = ("module", "qualname", "message", "frames", "notes", "state")
    class Frame(_message.Message):
        __slots__ = ("file", "line", "function", "source")
        FILE_FIELD_NUMBER: _ClassVar[int]
        LINE_FIELD_NUMBER: _ClassVar[int]
        FUNCTION_FIELD_NUMBER: _ClassVar[int]
        SOURCE_FIELD_NUMBER: _ClassVar[int]
        file: str
        line: int
        function: str
        source: str
        def __init__(self, file: _Optional[str] = ..., line: _Optional[int] = ..., function: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...
    MODULE_FIELD_NUMBER: _ClassVar[int]
    QUALNAME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    module: str
    qualname: str
    message: str
    frames: _containers.RepeatedCompositeFieldContainer[UserError.Frame]
    notes: _containers.RepeatedScalarFieldContainer[str]
    state: _payload_pb2.Payload
    def __init__(self, module: _Optional[str] = ..., qualname: _Optional[str] = ..., message: _Optional[str] = ..., frames: _Optional[_Iterable[_Union[UserError.Frame, _Mapping]]] = ..., notes: _Optional[_Iterable[str]] = ..., state: _Optional[_Union[_payload_pb2.Payload, _Mapping]] = ...) -> None: ...
