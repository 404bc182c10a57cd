from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_PLAIN: _ClassVar[Codec]
    CODEC_PICKLE5: _ClassVar[Codec]
CODEC_UNSPECIFIED: Codec
CODEC_PLAIN: Codec
CODEC_PICKLE5: Codec

class Payload(_message.Message):
    __slots__ = ("codec", "head", "sizes", "data", "segment")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    codec: Codec
    head: bytes
    sizes: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    segment: str
    def __init__(self, codec: _Optional[_Union[Codec, str]] = ..., head: _Optional[bytes] = ..., sizes: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., segment: _Optional[str] = ...) -> None: ...
