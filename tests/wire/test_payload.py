"""Payloads: values come back as they were, large buffers are not copied, nothing received can crash us."""

from __future__ import annotations

import collections
import datetime
import enum
import pickle
import subprocess
import sys
import threading
import time
from typing import Any

import attrs
import hypothesis.extra.numpy as hnp
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasfaas.core.errors import InvalidRequestError, SerializationError
from hasfaas.wire.payload import (
    ALIGN_BYTES,
    Codec,
    Payload,
    blob_bytes,
    decode,
    decode_arguments,
    encode,
    encode_arguments,
    from_bytes,
    segments,
)
from hasfaas.wire.plain import LONG_BYTES


def same(a: Any, b: Any) -> bool:
    """Equal in value and in every type, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, np.generic):
        return bool(a.dtype == b.dtype and a.tobytes() == b.tobytes())
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(ka, kb) and same(va, vb) for (ka, va), (kb, vb) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (a != a and b != b)


def through_bytes(payload: Payload, *, writable: bool = False) -> Payload:
    """The payload after a journey as one blob."""
    blob = b"".join(segments(payload))
    return from_bytes(
        int(payload.codec), payload.head, payload.lengths, bytearray(blob) if writable else memoryview(blob)
    )


def plain(value: object) -> object:
    payload = encode(value)
    assert payload.codec is Codec.PLAIN
    return decode(through_bytes(payload), allow_pickle=False)


def pickled(value: object) -> Any:
    payload = encode(value)
    assert payload.codec is Codec.PICKLE5
    return decode(through_bytes(payload, writable=True), allow_pickle=True)


# -- PLAIN

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(),
    hnp.floating_dtypes(),
    hnp.complex_number_dtypes(),
    hnp.datetime64_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.array_dtypes(st.one_of(hnp.integer_dtypes(), hnp.floating_dtypes()), min_size=1, max_size=3),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(),
    st.binary(max_size=40),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
    st.booleans().map(np.bool_),
    st.integers(-128, 127).map(np.int8),
)
KEYS = st.one_of(st.integers(-9, 9), st.text(max_size=3), st.tuples(st.integers(0, 9), st.text(max_size=2)))
TREES = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_plain_trees_come_back_with_every_type(tree: object) -> None:
    assert same(plain(tree), tree)


@pytest.mark.parametrize(
    "array",
    [
        np.float64(3.5) * np.ones(()),
        np.empty((0, 3), np.float32),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.array([(1, 2.5), (3, 4.5)], dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        np.array([((1, 2), [3, 4])], dtype=[("p", [("x", "u1"), ("y", "u2")]), ("v", "f4", (2,))]),
        np.array(["2024-01-01", "NaT"], dtype="M8[D]"),
        np.array([b"a\0", b""], dtype="S4"),
    ],
)
def test_arrays_of_every_kind(array: np.ndarray[Any, Any]) -> None:
    assert same(plain(array), array)


def test_layouts_are_kept_and_gaps_are_copied_once() -> None:
    fortran = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    payload = encode(fortran)
    assert np.shares_memory(np.frombuffer(payload.buffers[0], np.uint8), fortran)
    back = decode(payload, allow_pickle=False)
    assert isinstance(back, np.ndarray) and back.flags.f_contiguous and same(back, fortran)

    gaps = np.arange(20.0)[::2]
    payload = encode(gaps)
    assert not np.shares_memory(np.frombuffer(payload.buffers[0], np.uint8), gaps)
    assert payload.lengths == (80,) and same(plain(gaps), gaps)
    assert same(plain(gaps[::-1]), gaps[::-1])


def test_a_large_array_is_not_copied() -> None:
    array = np.zeros(1_000_000)
    payload = encode({"x": [array]})
    assert payload.codec is Codec.PLAIN and payload.lengths == (8_000_000,) and len(payload.head) < 100
    array[7] = 5.0
    assert np.frombuffer(payload.buffers[0])[7] == 5.0, "the buffer is the array's own memory"
    back: Any = decode(payload, allow_pickle=False)
    assert np.shares_memory(back["x"][0], array)


def test_out_of_band_is_many_times_cheaper_than_a_pickle_in_band() -> None:
    array = np.zeros(1_000_000)

    def best(work: Any) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    assert best(lambda: pickle.dumps(array, protocol=5)) > 5 * best(lambda: encode(array))


def test_views_are_writable_only_where_the_buffer_is() -> None:
    payload = encode(np.arange(3))
    fixed: Any = decode(through_bytes(payload), allow_pickle=False)
    assert not fixed.flags.writeable
    free: Any = decode(through_bytes(payload, writable=True), allow_pickle=False)
    free[0] = 9
    assert free.tolist() == [9, 1, 2]


def test_long_bytes_travel_out_of_band() -> None:
    data = b"x" * LONG_BYTES
    payload = encode([data, b"short"])
    assert payload.buffers == (data,) and len(payload.head) < 40
    assert plain([data, b"short"]) == [data, b"short"]


# -- what is not plain


class Colour(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


@attrs.define
class Box:
    inside: Any


class Text(str):
    pass


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        frozenset({3}),
        bytearray(b"ab"),
        complex(1, 2),
        Colour.RED,
        Point(1, 2),
        collections.OrderedDict(a=1),
        Text("t"),
        {"k": Colour.RED},
        2**64,
        -(2**63) - 1,
        "\ud800",
        datetime.datetime(2024, 1, 2),
        Box([1]),
        np.array([1, "a"], dtype=object),
        np.str_("s"),
        np.ma.masked_array([1, 2], [False, True]),
        len,
        int,
    ],
    ids=repr,
)
def test_everything_else_is_pickled_and_keeps_its_type(value: Any) -> None:
    back = pickled(value)
    assert type(back) is type(value)
    assert back.tolist() == value.tolist() if isinstance(value, np.ndarray) else back == value


def test_cycles_and_deep_trees_are_left_to_pickle() -> None:
    ring: dict[str, Any] = {}
    ring["me"] = ring["again"] = ring
    back = pickled(ring)
    assert back["me"] is back and back["again"] is back

    through_tuple: list[Any] = []
    through_tuple.append((through_tuple, through_tuple))
    back = pickled(through_tuple)
    assert back[0][1] is back

    deep: list[Any] = []
    for _ in range(150):
        deep = [deep]
    assert pickled(deep) == deep


def test_functions_are_pickled_by_value() -> None:
    factor = 3
    assert pickled([lambda x: x * factor])[0](5) == 15


def test_arrays_inside_objects_travel_out_of_band() -> None:
    array = np.zeros(100_000)
    payload = encode(Box({"a": array}))
    assert payload.codec is Codec.PICKLE5 and payload.lengths == (800_000,) and len(payload.head) < 1000
    assert np.shares_memory(np.frombuffer(payload.buffers[0]), array)
    assert pickled(Box(array)).inside.shape == (100_000,)


class Model:
    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_what_cannot_be_pickled_is_named_by_its_path() -> None:
    with pytest.raises(SerializationError, match=r"^value\['m'\]\[1\]\.lock: cannot pickle '_thread\.lock' obj"):
        encode({"m": [1, Model()]})
    with pytest.raises(SerializationError, match=r"^args\[0\]\.inside\.lock: cannot pickle"):
        encode_arguments((Box(Model()),), {})
    with pytest.raises(SerializationError, match=r"^kwargs\['model'\]\.lock: cannot pickle"):
        encode_arguments((1,), {"model": Model()})
    with pytest.raises(SerializationError, match=r"^result\.inside: cannot pickle 'generator'"):
        encode(Box(letter for letter in "ab"), name="result")


def test_memory_errors_are_not_dressed_up() -> None:
    with pytest.raises(MemoryError):
        encode(Exhausted())


class Exhausted:
    def __reduce__(self) -> Any:
        raise MemoryError


# -- decoding


def test_a_pickle_needs_permission() -> None:
    payload = encode({1})
    with pytest.raises(SerializationError, match="allow pickles where the sender is trusted"):
        decode(payload, allow_pickle=False)
    assert decode(payload, allow_pickle=True) == {1}


class Grenade:
    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise KeyError("pin")


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class MuteGrenade:
    def __reduce__(self) -> Any:
        return _explode_mute, ()


def _explode_mute() -> None:
    raise MuteError


def test_whatever_a_pickle_raises_is_wrapped_with_its_cause() -> None:
    with pytest.raises(SerializationError, match="PICKLE5 payload cannot be rebuilt: KeyError") as caught:
        decode(encode(Grenade()), allow_pickle=True)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(SerializationError, match="MuteError: MuteError"):
        decode(encode(MuteGrenade()), allow_pickle=True)
    with pytest.raises(SerializationError):
        decode(Payload(Codec.PICKLE5, b"\x80\x05garbage"), allow_pickle=True)


def mark(code: int) -> msgpack.ExtType:
    return msgpack.ExtType(code, b"")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xc1",
        msgpack.packb(1) + b"\x00",
        msgpack.packb(mark(1)),
        msgpack.packb([1, mark(1)]),
        msgpack.packb([mark(1), mark(1)]),
        msgpack.packb([mark(9)]),
        msgpack.packb([msgpack.ExtType(1, b"x")]),
        msgpack.packb([mark(2)]),
        msgpack.packb([mark(2), 0, "<f8", [1]]),
        msgpack.packb([mark(2), 1, "<f8", [1], None]),
        msgpack.packb([mark(2), -1, "<f8", [1], None]),
        msgpack.packb([mark(2), True, "<f8", [1], None]),
        msgpack.packb([mark(2), 0, "<f8", [2], None]),
        msgpack.packb([mark(2), 0, "<f8", [-1], None]),
        msgpack.packb([mark(2), 0, "<f8", [1.0], None]),
        msgpack.packb([mark(2), 0, "<f8", 1, None]),
        msgpack.packb([mark(2), 0, "O", [1], None]),
        msgpack.packb([mark(2), 0, "V0", [2**60], None]),
        msgpack.packb([mark(2), 0, 5, [1], None]),
        msgpack.packb([mark(2), 0, [["a"]], [1], None]),
        msgpack.packb([mark(2), 0, "(((", [1], None]),
        msgpack.packb([mark(2), 0, "<f8", [1], [1]]),
        msgpack.packb([mark(2), 0, "<f8", [1] * 100, None]),
        msgpack.packb([mark(2), 0, "<f8", [1, 1], [0, 0]]),
        msgpack.packb([mark(3), "<f8", b"1"]),
        msgpack.packb([mark(3), "V8", b"12345678"]),
        msgpack.packb([mark(4), 0, "float65", [1], None]),
        msgpack.packb([mark(4), 0, "Tensor", [1], None]),
        msgpack.packb([mark(4), 0, "float64", [3], None]),
        msgpack.packb([mark(5)]),
        msgpack.packb([mark(5), 3]),
        msgpack.packb({(mark(2), 0, "<f8", (1,), None): 1}),
        b"\x91" * 5000 + b"\xc0",
    ],
)
def test_a_malformed_head_is_a_typed_error(head: bytes) -> None:
    with pytest.raises(SerializationError):
        decode(Payload(Codec.PLAIN, head, (b"12345678",)), allow_pickle=False)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.lists(st.binary(max_size=9), max_size=2))
def test_random_heads_give_a_value_or_a_typed_error(head: bytes, buffers: list[bytes]) -> None:
    try:
        decode(Payload(Codec.PLAIN, head, tuple(buffers)), allow_pickle=False)
    except SerializationError:
        pass


@settings(max_examples=150, deadline=None)
@given(TREES, st.data())
def test_damaged_payloads_give_a_value_or_a_typed_error(tree: object, data: st.DataObject) -> None:
    payload = encode([tree, np.arange(3), (1, np.float32(2))])
    head = bytearray(payload.head)
    for _ in range(data.draw(st.integers(1, 3))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(attrs.evolve(payload, head=bytes(head)), allow_pickle=False)
    except SerializationError:
        pass


# -- blobs


@given(st.lists(st.integers(0, 300), max_size=6))
def test_buffers_start_at_multiples_of_64_and_come_back(sizes: list[int]) -> None:
    buffers = tuple(bytes([i + 1]) * size for i, size in enumerate(sizes))
    payload = Payload(Codec.PICKLE5, b"h", buffers)
    blob = b"".join(segments(payload))
    assert len(blob) == blob_bytes(sizes) < sum(sizes) + ALIGN_BYTES * len(sizes) + 1
    back = from_bytes(2, b"h", sizes, memoryview(blob))
    assert back.lengths == tuple(sizes) and tuple(bytes(b) for b in back.buffers) == buffers
    assert back.nbytes == 1 + sum(sizes)
    at = 0
    for piece in segments(payload):
        assert at % ALIGN_BYTES == 0 or not any(piece), "only padding starts elsewhere"
        at += len(piece)


def test_slices_of_a_blob_are_not_copies_and_are_aligned() -> None:
    payload = encode([np.arange(3, dtype=np.int8), np.arange(5.0)])
    blob = np.zeros(blob_bytes(payload.lengths) + 64, np.uint8)
    start = -blob.ctypes.data % 64
    view = blob[start : start + blob_bytes(payload.lengths)]
    view[:] = np.frombuffer(b"".join(segments(payload)), np.uint8)
    back: Any = decode(from_bytes(1, payload.head, payload.lengths, view.data), allow_pickle=False)
    assert np.shares_memory(back[1], blob) and back[1].ctypes.data % 64 == 0
    assert back[1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sizes", [(9,), (7,), (), (8, 1), (-8,), (16, -8)])
def test_sizes_that_do_not_fit_the_blob_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(SerializationError, match="need a blob of"):
        from_bytes(1, b"", sizes, b"12345678")


@pytest.mark.parametrize("codec", [0, 3, -1])
def test_an_unknown_codec_is_refused(codec: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"codec {codec} is unknown; known: 1, 2"):
        from_bytes(codec, b"", (), b"")


def test_arguments_make_a_pair() -> None:
    payload = encode_arguments((1, "a"), {"k": np.float32(2)})
    assert decode_arguments(payload, allow_pickle=False) == ((1, "a"), {"k": np.float32(2)})
    wrongs: list[object] = [[1], ((1,),), ([1], {}), ((), {1: 2}), ((), {}, 3)]
    for wrong in wrongs:
        with pytest.raises(SerializationError, match=r"holds \(args, kwargs\)"):
            decode_arguments(encode(wrong), allow_pickle=False)


# -- torch


def test_encoding_plain_values_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hasfaas.wire.payload import encode, decode; p = encode([1, (2, 'a'), {'k': b'x'}]);"
        "assert decode(p, allow_pickle=False) == [1, (2, 'a'), {'k': b'x'}];"
        "heavy = {'torch', 'numpy', 'cloudpickle'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestTorch:
    @pytest.fixture(autouse=True)
    def torch(self) -> Any:
        self.t: Any = pytest.importorskip("torch")
        return self.t

    def same(self, a: Any, b: Any) -> bool:
        return (
            type(a) is type(b)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.stride() == b.stride()
            and bool((a == b).all())
        )

    @pytest.mark.parametrize(
        "dtype",
        [
            *("bool", "uint8", "int8", "uint16", "int16", "int32", "int64"),
            *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
            *("complex64", "complex128"),
        ],
    )
    def test_dtypes(self, dtype: str) -> None:
        tensor = self.t.arange(6).reshape(2, 3).to(getattr(self.t, dtype))
        back: Any = plain(tensor)
        assert back.dtype == tensor.dtype and back.shape == tensor.shape
        assert bool((back.to(self.t.complex64) == tensor.to(self.t.complex64)).all())

    def test_shapes_and_layouts(self) -> None:
        t = self.t
        for tensor in (
            t.tensor(2.5),
            t.empty(0, 3),
            t.arange(6.0).reshape(2, 3).T,
            t.rand(2, 3, 4, 5).contiguous(memory_format=t.channels_last),
            t.tensor([1 + 2j]).conj().resolve_conj(),
        ):
            assert self.same(plain(tensor), tensor)
        gaps = t.arange(10.0)[::2]
        assert plain(gaps).tolist() == gaps.tolist()  # type: ignore[attr-defined]
        assert plain(t.ones(1).expand(4)).tolist() == [1.0] * 4  # type: ignore[attr-defined]
        conj = t.tensor([1 + 2j]).conj()
        assert plain(conj).tolist() == [1 - 2j]  # type: ignore[attr-defined]

    def test_no_copy_into_the_payload_and_out_of_a_writable_buffer(self) -> None:
        tensor = self.t.zeros(1000)
        payload = encode([tensor])
        tensor[3] = 7.0
        assert np.frombuffer(payload.buffers[0], np.float32)[3] == 7.0
        blob = bytearray(b"".join(segments(payload)))
        back: Any = decode(from_bytes(1, payload.head, payload.lengths, blob), allow_pickle=False)
        back[0][0] = 1.0
        assert np.frombuffer(blob, np.float32)[0] == 1.0

    def test_a_read_only_or_unaligned_buffer_is_copied(self) -> None:
        payload = encode(self.t.ones(2))
        blob = b"".join(segments(payload))
        back: Any = decode(from_bytes(1, payload.head, payload.lengths, blob), allow_pickle=False)
        back += 1
        assert back.tolist() == [2.0, 2.0] and np.frombuffer(blob, np.float32).tolist() == [1.0, 1.0]
        shifted = memoryview(bytearray(b"\0" + blob))[1:]
        odd: Any = decode(from_bytes(1, payload.head, payload.lengths, shifted), allow_pickle=False)
        odd += 1
        assert np.frombuffer(shifted, np.float32).tolist() == [1.0, 1.0]

    def test_gradients(self) -> None:
        leaf = self.t.ones(3, requires_grad=True)
        back = pickled(leaf)
        assert back.requires_grad and back.is_leaf and back.tolist() == [1.0] * 3
        with pytest.raises(SerializationError, match=r"^value\[0\]: a tensor of an autograd graph .*\.detach\(\)"):
            encode([leaf * 2])
        with self.t.inference_mode():
            assert plain(leaf * 2).tolist() == [2.0] * 3  # type: ignore[attr-defined]

    def test_a_tensor_elsewhere_is_refused_with_the_cure(self) -> None:
        tensor = self.t.empty(3, device="meta")
        with pytest.raises(SerializationError, match=r"^args\[0\]\['x'\]: a tensor on meta .*\.cpu\(\)"):
            encode_arguments(({"x": tensor},), {})
        with pytest.raises(SerializationError, match=r"^value\.inside.*: a tensor on meta"):
            encode(Box(self.t.nn.Parameter(tensor)))

    def test_tensors_in_objects_travel_out_of_band(self) -> None:
        tensor = self.t.arange(100_000)
        payload = encode(Box((tensor, tensor)))
        assert payload.lengths == (800_000,) and len(payload.head) < 1000
        back = pickled(Box((tensor, tensor)))
        assert back.inside[0] is back.inside[1] and self.same(back.inside[0], tensor)

    def test_modules_travel_out_of_band_with_tied_weights(self) -> None:
        nn = self.t.nn
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        model[1].weight = model[0].weight
        payload = encode(model)
        assert sorted(payload.lengths) == [256, 256, 64 * 64 * 4]
        back = pickled(model)
        assert back[0].weight is back[1].weight and type(back[0].weight) is nn.Parameter
        x = self.t.rand(2, 64)
        assert self.t.equal(back(x), model(x))

    def test_unusual_tensors_keep_what_they_are(self) -> None:
        sparse = self.t.eye(3).to_sparse()
        assert pickled(sparse).is_sparse and pickled(sparse).to_dense().equal(self.t.eye(3))
        named = self.t.zeros(2)
        named.label = "mine"
        assert pickled(named).label == "mine"

    def test_a_decoder_without_torch_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        payload = encode(self.t.ones(1))
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(SerializationError, match=r"pip install 'hasfaas\[torch\]'"):
            decode(payload, allow_pickle=False)
