"""What the calls in a pickle stand for: tensors of every layout and type, objects that hold values, whole modules."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import enum
import fractions
import functools
import pathlib
import pickle
import struct
import types
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from optstate.errors import Damaged, OptstateError, Refused
from optstate.formats.containers.assembled import Assembled
from optstate.formats.containers.modules import is_module, module_tensors
from optstate.formats.containers.pickle_file import read_pickle
from optstate.formats.containers.pickle_machine import Call, Global
from optstate.formats.containers.pickled_optimizer import is_optimizer, state_dict_of
from optstate.formats.containers.quantised import Affine, Blockwise
from optstate.formats.containers.records import attribute, attributes_of
from optstate.formats.containers.regular import open_regular
from optstate.formats.containers.stored_tensor import StoredTensor
from optstate.formats.containers.torch_zip import read_torch_zip
from optstate.formats.containers.zip_archive import ZipArchive
from optstate.formats.opening import open_checkpoint
from optstate.state.tensors import BLOCK, is_tensor, nbytes
from tests.forged import NO_HOOKS, call, items, name, number, numbers, pickled, storage, tensor, text, torch_file
from tests.truth import assert_is

# --- reading ------------------------------------------------------------------------------------------------


def read_file(path):
    """What a torch zip holds, and the notes on it."""
    found = read_torch_zip(ZipArchive(open_regular(path)))
    return found.root, found.notes


@pytest.fixture
def through(tmp_path):
    """Save a value with torch, and read what stands for it."""

    def save_and_read(value, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces changes to what is saved here
            torch.save({"x": value}, tmp_path / "ck.pt", **options)
        root, notes = read_file(tmp_path / "ck.pt")
        return root["x"], notes

    return save_and_read


@pytest.fixture
def forged(tmp_path):
    """Read a pickle of `{"x": node}` beside one storage of six floats."""

    def read(node, storages=None):
        (tmp_path / "ck.pt").write_bytes(torch_file(pickled(node), storages))
        return read_file(tmp_path / "ck.pt")[0]["x"]

    return read


@pytest.fixture
def plain(tmp_path):
    """Read a pickle without tensors."""

    def read(raw):
        (tmp_path / "value.pkl").write_bytes(raw)
        found = read_pickle(open_regular(tmp_path / "value.pkl"))
        return found.root, found.notes

    return read


@pytest.fixture
def python(plain):
    """Pickle a value of Python alone, and read what stands for it."""
    return lambda value, protocol=2: plain(pickle.dumps(value, protocol))


def assert_bits(found, true):
    """A reference has the type, shape and bits of a tensor, whole and in blocks."""
    expected = true.detach().resolve_conj().resolve_neg().contiguous()
    raw = expected.reshape(-1).view(torch.uint8).numpy().tobytes() if expected.numel() else b""
    assert (found.dtype, found.shape) == (str(true.dtype).removeprefix("torch."), tuple(true.shape))
    assert np.ascontiguousarray(found.array()).tobytes() == raw
    assert b"".join(np.ascontiguousarray(block).tobytes() for block in found.blocks()) == raw


# --- tensors ------------------------------------------------------------------------------------------------

EVERY_TYPE = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    *(torch.complex128, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
]


@pytest.mark.parametrize("dtype", EVERY_TYPE, ids=str)
def test_every_element_type(dtype, through):
    """Each type of torch that has a meaning by itself reads with its own bits."""
    values = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.5, 1.5]]).to(dtype)
    found, notes = through(values)
    assert_bits(found, values)
    assert notes == []


VIEWS = {
    "conjugated": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "negated": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).T,
    "parameter": lambda: nn.Parameter(torch.arange(3.0)),
    "buffer": lambda: nn.Buffer(torch.arange(3.0)),
    "empty": lambda: torch.empty(0, 3),
    "scalar": lambda: torch.tensor(3.5),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_views_and_wrappings(kind, through):
    """Lazy views, parameters and odd layouts read as the values that they stand for."""
    assert_bits(through(VIEWS[kind]())[0], VIEWS[kind]())


class Labelled(torch.Tensor):
    """A subclass of someone's own, with values of its own."""


def test_subclass_with_values_of_its_own(through):
    """A tensor of a foreign subclass is the tensor that it stores, and the class is named."""
    values = torch.arange(3.0).as_subclass(Labelled)
    found, notes = through(values)
    assert_bits(found, torch.arange(3.0))
    assert notes == [f"not imported: {__name__}.Labelled"]


def test_first_form_of_tensors(forged):
    """The call that the oldest files have, of four arguments."""
    found = forged(call(name("torch._utils", "_rebuild_tensor"), storage(), number(1), numbers(2), numbers(2)))
    assert found.array().tolist() == [1.0, 3.0]


def test_meta_tensor(through):
    """A tensor without values has its shape, and says why it has nothing else."""
    found, _ = through(torch.empty(3, 4, device="meta", dtype=torch.float16))
    assert (found.dtype, found.shape) == ("float16", (3, 4))
    for read in (found.array, lambda: next(iter(found.blocks())), found.item):
        with pytest.raises(OptstateError, match=r"(?s)not there.*meta device"):
            read()


def test_tensor_of_another_device(forged):
    """Devices that pickle through numpy keep their values."""
    array = b"".join(pickle_of(np.arange(3, dtype=np.float32)))
    found = forged(
        call(
            name("torch._utils", "_rebuild_device_tensor_from_numpy"),
            array,
            name("torch", "float32"),
            text("xla:0"),
            b"\x89",
        )
    )
    assert found.array().tolist() == [0.0, 1.0, 2.0]


def pickle_of(value):
    """The opcodes of a value, without PROTO and STOP."""
    return [pickle.dumps(value, 2)[2:-1]]


# --- sparse ----------------------------------------------------------------------------------------------------

COUNTED = torch.sparse_coo_tensor([[0, 0, 2], [1, 1, 3]], [1.0, 2.0, 3.0], (3, 4), check_invariants=True)
BANDED = torch.block_diag(torch.full((2, 2), 2.0), torch.full((2, 2), 3.0))
SPARSE = {
    "COO": lambda: torch.eye(3).to_sparse(),
    "COO, not coalesced": lambda: COUNTED,
    "COO with dense rows": lambda: torch.arange(12.0).reshape(3, 4).to_sparse(1),
    "COO of nothing": lambda: torch.zeros(2, 3).to_sparse(),
    "CSR": lambda: torch.tensor([[0.0, 1], [2, 0], [0, 0]]).to_sparse_csr(),
    "CSC": lambda: torch.tensor([[0.0, 1], [2, 0], [0, 0]]).to_sparse_csc(),
    "BSR": lambda: BANDED.to_sparse_bsr((2, 2)),
    "BSC": lambda: BANDED.to_sparse_bsc((2, 1)),
}


@pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR|BSC) tensor support is in beta")
@pytest.mark.parametrize("kind", SPARSE)
def test_sparse(kind, through):
    """Sparse tensors show what they store, and read as the dense values that they stand for."""
    true = SPARSE[kind]()
    found, notes = through(true)
    assert notes == []
    assert (found.dtype, found.shape) == ("float32", tuple(true.shape))
    assert found.array().tolist() == true.to_dense().tolist()
    assert np.concatenate(list(found.blocks())).tolist() == true.to_dense().reshape(-1).tolist()
    stored = true._nnz() if kind.startswith("COO") else len(true.values())
    assert f"sparse {kind[:3]}, {stored} stored" in repr(found)
    assert nbytes(found) == sum(map(nbytes, found.parts))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(
    ("layout", "data"),
    [
        ("sparse_coo", (torch.tensor([[0, 3]]), torch.ones(2), torch.Size([3]), True)),
        ("sparse_coo", (torch.tensor([[0, -1]]), torch.ones(2), torch.Size([3]), True)),
        ("sparse_csr", (torch.tensor([0, 1, 2]), torch.tensor([0, 2]), torch.ones(2), torch.Size([2, 2]))),
        ("sparse_csr", (torch.tensor([0, 2, 1]), torch.tensor([0, 1]), torch.ones(2), torch.Size([2, 2]))),
        ("sparse_csr", (torch.tensor([0, 2]), torch.tensor([0, 1]), torch.ones(2), torch.Size([2, 2]))),
        ("sparse_coo", (torch.tensor([[0], [0]]), torch.ones(1), torch.Size([1 << 40, 1 << 20]), True)),
    ],
    ids=[
        "past the end",
        "negative",
        "column past the end",
        "rows that run back",
        "too few rows",
        "dense beyond memory",
    ],
)
def test_sparse_that_lies(layout, data, through):
    """Indices are held against the shape before anything is written with them."""
    found, _ = through(Sparse(layout, data))
    with pytest.raises(Refused, match="outside its shape|start nowhere|as a dense array"):
        found.array()


class Sparse:
    """Pickles as a sparse tensor of any parts."""

    def __init__(self, layout, data):
        self.parts = layout, data

    def __reduce__(self):
        return torch._utils._rebuild_sparse_tensor, (getattr(torch, self.parts[0]), self.parts[1])


# --- quantised by torch ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize("dtype", ["qint8", "quint8", "qint32"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_quantised_by_torch(dtype, axis, through):
    """Affine tensors read as torch dequantises them, bit for bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop these; files that hold them stay
        values = torch.linspace(-2, 2, 12).reshape(3, 4)
        if axis is None:
            true = torch.quantize_per_tensor(values, 0.037, 3, getattr(torch, dtype))
        else:
            count = values.shape[axis]
            scales, zeros = torch.linspace(0.01, 0.09, count, dtype=torch.float64), torch.arange(count)
            true = torch.quantize_per_channel(values, scales, zeros, axis, getattr(torch, dtype))
        expected = true.dequantize()
    found, notes = through(true)
    assert notes == []
    assert isinstance(found, Affine)
    assert (found.dtype, found.shape, found.axis) == (dtype, (3, 4), axis)
    assert found.array().tobytes() == expected.numpy().tobytes()
    assert np.concatenate(list(found.blocks())).tobytes() == expected.numpy().tobytes()
    assert nbytes(found) >= 12


# --- blocks of codes -----------------------------------------------------------------------------------------------


class Held:
    """An array as a reference."""

    def __init__(self, array, dtype=None):
        self.values = np.asarray(array)
        self.dtype, self.shape = dtype or self.values.dtype.name, self.values.shape

    def array(self):
        return self.values

    def blocks(self):
        flat = self.values.reshape(-1)
        return (flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK))


def test_long_codes_come_in_blocks():
    """A quantised tensor of several blocks streams, none of them longer than is promised."""
    rng = np.random.default_rng(0)
    for levels, per_byte in ((256, 1), (16, 2)):
        elements = 2 * BLOCK + 512
        codes = rng.integers(0, 256, elements // per_byte, dtype=np.uint8)
        scale, qmap = rng.random(elements // 256, np.float32), rng.random(levels, np.float32)
        ref = Blockwise(Held(codes), Held(scale), Held(qmap), (elements,), 256)
        blocks = list(ref.blocks())
        assert max(block.size for block in blocks) <= BLOCK
        places = codes if per_byte == 1 else np.stack([codes >> 4, codes & 15], -1).reshape(-1)
        assert np.concatenate(blocks).tobytes() == (qmap[places] * np.repeat(scale, 256)).tobytes()


@pytest.mark.parametrize(
    ("codes", "scale", "qmap", "shape", "block"),
    [
        ((8,), (2,), (17,), (8,), 4),
        ((8,), (3,), (256,), (8,), 4),
        ((8,), (2,), (256,), (9,), 4),
        ((4,), (2,), (256,), (8,), 4),
        ((8,), (2,), (16,), (8,), 4),
        ((8,), (2, 1), (256,), (4, 2), 4),
        ((8,), (2,), (256,), (8,), 0),
    ],
    ids=[
        "a map of 17",
        "scales too many",
        "codes too few",
        "codes for half",
        "codes for twice",
        "other rows",
        "no block",
    ],
)
def test_parts_that_do_not_fit(codes, scale, qmap, shape, block):
    """Codes, scales and map must fit each other and the shape; nothing is read before."""
    parts = (Held(np.zeros(codes, np.uint8)), Held(np.zeros(scale, np.float32)), Held(np.zeros(qmap, np.float32)))
    with pytest.raises(ValueError, match=r"codes|scales"):
        Blockwise(*parts, shape, block)


# --- numpy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.eye(2)),
        np.float32(1.5),
        np.int64(3),
        np.arange(3, dtype=">i4"),
    ],
    ids=str,
)
def test_numpy_in_both_spellings(core, value, plain):
    """Arrays and scalars of numpy read alike, whether written before or since numpy 2."""
    found, notes = plain(pickle.dumps(value, 2).replace(b"numpy._core", core))
    assert notes == []
    np.testing.assert_array_equal(found.array() if is_tensor(found) else found, value)


def test_numpy_types_of_ml_dtypes(python):
    """Arrays of bfloat16 and float8, as JAX pickles them."""
    for kind in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        (found, single), notes = python([np.arange(4).astype(kind), kind(1.5)])
        assert notes == []
        assert found.array().dtype == kind
        assert found.array().tolist() == [0, 1, 2, 3]
        assert single == 1.5


# --- objects that hold values --------------------------------------------------------------------------------------


class Colour(enum.Enum):
    """An enum of someone's own."""

    RED = 1


class Slotted:
    """An object without a dict."""

    __slots__ = ("a", "b")

    def __init__(self, a, b):
        self.a, self.b = a, b


class Settings:
    """An object with attributes."""

    def __init__(self):
        self.rate, self.nested = 0.1, argparse.Namespace(depth=3)


@pytest.mark.parametrize("protocol", range(6))
def test_objects_are_walkable(protocol, python):
    """Namespaces and objects of any class can be looked into, whatever protocol wrote them, and print as their class."""
    found, notes = python([argparse.Namespace(lr=0.1), types.SimpleNamespace(b=2), Settings()], protocol)
    namespace, simple, settings = found
    assert (attributes_of(namespace), str(namespace)) == ({"lr": 0.1}, "<argparse.Namespace>")
    assert (attribute(simple, "b"), str(simple)) == (2, "<types.SimpleNamespace>")
    assert str(settings) == f"<{__name__}.Settings>"
    assert attribute(attribute(settings, "nested"), "depth") == 3
    assert attribute(settings, "missing") is None
    assert attributes_of({"no": "object"}) == {}
    assert notes == [f"not called: {__name__}.Settings"]


def test_object_with_slots(python):
    """An object without a dict has its attributes all the same."""
    assert attributes_of(python(Slotted(1, [2]))[0]) == {"a": 1, "b": [2]}


@pytest.mark.parametrize("protocol", [2, 4])
def test_members_of_enums(protocol, python, plain):
    """A member of an enum is its value's call, or its dotted name where the enum is written so."""
    found, notes = python(Colour.RED, protocol)
    assert str(found) in (f"{__name__}.Colour(…)", f"{__name__}.Colour.RED")
    assert len(notes) == 1
    by_name, notes = plain(b"\x80\x02cbuiltins\ngetattr\ncmy.kinds\nColour\nX\x03\0\0\0RED\x86R.")
    assert (type(by_name), str(by_name)) == (Global, "my.kinds.Colour.RED")
    assert notes == ["not imported: my.kinds.Colour"]


DATES = [
    (dt.date(2024, 2, 29), "2024-02-29"),
    (dt.time(3, 4, 5, 6), "03:04:05.000006"),
    (dt.datetime(2024, 1, 2, 3, 4, 5), "2024-01-02T03:04:05"),  # noqa: DTZ001 - without a zone on purpose
    (dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2024-01-02T03:04:05 UTC"),
    (dt.timedelta(days=-1, seconds=5), "-1 days 5.000000 s"),
]


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(("value", "expected"), DATES, ids=str)
def test_dates_are_text(value, expected, protocol, python):
    """Dates, times and durations read as text."""
    assert python(value, protocol) == (expected, [])


def test_small_types(through):
    """Numbers with a class, partial functions, versions and layouts are records or text, and need no mention."""
    value = {
        "fraction": fractions.Fraction(1, 3),
        "decimal": decimal.Decimal("0.1"),
        "partial": functools.partial(max, 1),
        "version": torch.torch_version.TorchVersion("2.13.0"),
        "path": pathlib.PurePosixPath("a/b"),
        "size": torch.Size([2]),
        "device": torch.device("cpu"),
        "layout": torch.strided,
        "counter": collections.Counter(a=1),
    }
    found, notes = through(value)
    assert str(found["fraction"]) == "fractions.Fraction(…)"
    assert found["decimal"].arguments == ("0.1",)
    assert str(found["partial"]) == "<functools.partial>"
    assert (found["version"], found["path"], found["size"], found["device"]) == ("2.13.0", "a/b", (2,), "cpu")
    assert str(found["layout"]) == "torch.strided"
    assert found["counter"] == {"a": 1}
    assert notes == ["not imported: builtins.max"]


def config(kind, state):
    """A node of omegaconf as its pickle has it."""
    return name(*kind) + b")\x81" + state + b"b"


DICT, LIST, ANY = (
    ("omegaconf.dictconfig", "DictConfig"),
    ("omegaconf.listconfig", "ListConfig"),
    ("omegaconf.nodes", "AnyNode"),
)


def test_configuration_of_omegaconf(forged, tmp_path):
    """A tree whose values know what contains them is free of that, and shows its keys and values."""
    value = config(ANY, b"}(" + text("_parent") + b"h\x01" + text("_val") + number(3) + b"u")
    inner = config(LIST, b"}(" + text("_parent") + b"h\x01" + text("_content") + b"](" + value + b"eu")
    node = name(*DICT) + b")\x81q\x01}(" + text("_parent") + b"N" + text("_content") + b"}(" + text("lr") + value
    node += text("sizes") + inner + b"uub"
    found = forged(node)
    assert attribute(found, "lr") == 3
    assert attributes_of(attributes_of(found)["sizes"]) == {"0": 3}
    checkpoint = open_checkpoint(tmp_path / "ck.pt")
    assert str(checkpoint.objects["x"]) == "<omegaconf.dictconfig.DictConfig>"
    assert checkpoint.notes == ("no optimizer state in it",)


# --- whole modules and optimizers ----------------------------------------------------------------------------------


class Net(nn.Module):
    """Nested modules, a shared one, tied weights, a buffer that is not saved, a parameter that is None."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2))
        self.again = self.blocks[0]
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(()))
        self.register_parameter("nothing", None)
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self, x):
        """Go through every layer."""
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.scale


def trained(optimizer_of):
    torch.manual_seed(0)
    model = Net()
    optimizer = optimizer_of(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("stream", [False, True], ids=["zip", "stream"])
def test_whole_module(stream, tmp_path):
    """A pickled module gives the names, order and values of `named_parameters()` and `named_buffers()`."""
    model = Net()
    torch.save(model, tmp_path / "ck.pt", _use_new_zipfile_serialization=not stream)
    checkpoint = open_checkpoint(tmp_path / "ck.pt")
    node = checkpoint.objects["object"]
    assert is_module(node)
    parameters, buffers = module_tensors(node)
    assert list(parameters) == [key for key, _ in model.named_parameters()]
    assert list(buffers) == [key for key, _ in model.named_buffers()]
    for found, true in ((parameters, dict(model.named_parameters())), (buffers, dict(model.named_buffers()))):
        for key, ref in found.items():
            assert_bits(ref, true[key])
    assert list(checkpoint.weights) == [*parameters, *buffers]


def test_what_is_no_module_has_no_tensors():
    """Neither a dict nor an object of another class is walked as a module."""
    assert module_tensors({"_parameters": {}}) == ({}, {})
    assert module_tensors(Call(Global("a", "B", None), ())) == ({}, {})


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_module_with_state_dict(kind, tmp_path):
    """`{"model": model, "optimizer": optimizer.state_dict()}`: names come from the pickled module, by their order."""
    model, optimizer = trained(OPTIMIZERS[kind])
    torch.save({"model": model, "optimizer": optimizer.state_dict()}, tmp_path / "ck.pt")
    assert_is(open_checkpoint(tmp_path / "ck.pt"), optimizer, model, certainty="rule")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_module_and_optimizer_as_objects(kind, tmp_path):
    """A pickled optimizer holds the very tensors of the module beside it: that is a name written in the file."""
    model, optimizer = trained(OPTIMIZERS[kind])
    torch.save({"model": model, "optimizer": optimizer}, tmp_path / "ck.pt")
    checkpoint = open_checkpoint(tmp_path / "ck.pt")
    assert_is(checkpoint, optimizer, model, certainty="file")
    (info,) = checkpoint.state.optimizers.values()
    assert (info.class_name, info.inferred) == (f"torch.optim.{kind.lower()}.{kind}", False)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_alone_as_object(kind, tmp_path):
    """A pickled optimizer without its model has its state by position, every slot and value."""
    _, optimizer = trained(OPTIMIZERS[kind])
    torch.save(optimizer, tmp_path / "ck.pt")
    state = open_checkpoint(tmp_path / "ck.pt").state
    saved = optimizer.state_dict()["state"]
    assert list(state) == [f"#{index}" for index in saved]
    for index, parameter in enumerate(state.values()):
        assert list(parameter.slots) == list(saved[index])
        for key, slot in parameter.slots.items():
            assert_bits(slot.value, saved[index][key])


def test_optimizer_never_stepped_as_object(through):
    """It has its groups, and no state; a module is none."""
    found, _ = through(torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]))
    assert is_optimizer(found)
    assert state_dict_of(found, {})["state"] == {}
    assert not is_optimizer(through(nn.Linear(2, 2))[0])


def test_every_optimizer_of_torch_as_a_file(tmp_path):
    """Roles and absences of the special ones: none is taken for a momentum, and what is not kept is not missed."""
    expected = {
        torch.optim.LBFGS: {"momentum": "not-kept", "second_moment": "not-kept", "step": "not-kept"},
        torch.optim.Adafactor: {"momentum": "not-kept", "second_moment": "not-kept"},
        torch.optim.Muon: {"second_moment": "not-kept", "step": "not-kept"},
        torch.optim.SparseAdam: {},
        torch.optim.Rprop: {"momentum": "not-kept", "second_moment": "not-kept"},
        torch.optim.Adagrad: {"momentum": "not-kept"},
    }
    for cls, absences in expected.items():
        parameter = nn.Parameter(torch.ones(4, 3))
        optimizer = cls([parameter])

        def closure(parameter=parameter, sparse=cls is torch.optim.SparseAdam):
            gradient = torch.ones(4, 3)
            parameter.grad = gradient.to_sparse() if sparse else gradient
            return torch.tensor(1.0)

        closure()
        optimizer.step(closure)
        torch.save(optimizer.state_dict(), tmp_path / "ck.pt")
        checkpoint = open_checkpoint(tmp_path / "ck.pt")
        (found,) = checkpoint.state.values()
        (info,) = checkpoint.state.optimizers.values()
        assert (info.short_name.rstrip("?"), sorted(found.slots)) == (cls.__name__, sorted(optimizer.state[parameter]))
        assert {role: reason.value for role, reason in found.absences.items()} == absences


# --- parts of tensors ------------------------------------------------------------------------------------------------


@pytest.fixture
def group():
    """A process group of four, of which this is the third, that talks to nobody."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=2, world_size=4, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, about what it is about to change
@pytest.mark.parametrize(
    ("mesh", "cuts", "start", "part"),
    [
        ((4,), "0", (6, 0), (3, 6)),
        ((4,), "1", (0, 4), (10, 2)),
        ((2, 2), "0r", (5, 0), (5, 6)),
        ((2, 2), "01", (5, 0), (5, 3)),
        ((2, 2), "00", (5, 0), (3, 6)),
    ],
    ids=str,
)
def test_tensor_of_a_mesh(mesh, cuts, start, part, group, through):
    """A DTensor has its whole shape, the part of this process at its place, and says that it is not all."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    whole = torch.arange(60.0).reshape(10, 6)
    placements = [Replicate() if cut == "r" else Shard(int(cut)) for cut in cuts]
    true = distribute_tensor(whole, init_device_mesh("cpu", mesh), placements, src_data_rank=None)
    found, notes = through(true)
    assert notes == []
    assert isinstance(found, Assembled)
    assert (found.dtype, found.shape) == ("float32", (10, 6))
    (piece,) = found.pieces
    assert (piece.start, piece.tensor.shape) == (start, part)
    assert_bits(piece.tensor, true.to_local())
    assert_bits(piece.tensor, whole[start[0] : start[0] + part[0], start[1] : start[1] + part[1]])
    with pytest.raises(Damaged, match=f"{part[0] * part[1]} of 60 elements are there"):
        found.array()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as above
def test_whole_and_unfinished_tensors_of_a_mesh(group, through):
    """A replicated DTensor is its values; one that is still to be summed stays a record."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor

    mesh = init_device_mesh("cpu", (4,))
    values = torch.arange(4.0)
    found, notes = through(distribute_tensor(values, mesh, [Replicate()], src_data_rank=None))
    assert_bits(found, values)
    assert notes == []
    assert isinstance(through(DTensor.from_local(values, mesh, [Partial()]))[0], Call)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as above
def test_sharded_tensor(group, through):
    """A ShardedTensor has its whole shape and the shard of this process at its place."""
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharded_tensor.api import ShardedTensor
    from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata, TensorProperties
    from torch.distributed._shard.sharded_tensor.shard import Shard

    shards = [ShardMetadata([2 * rank, 0], [2, 3], f"rank:{rank}/cpu") for rank in range(4)]
    local = torch.arange(6.0).reshape(2, 3)
    metadata = ShardedTensorMetadata(shards, torch.Size([8, 3]), TensorProperties(dtype=torch.float32))
    true = ShardedTensor._init_from_local_shards_and_global_metadata([Shard(local, shards[2])], metadata)
    found, notes = through(true)
    assert notes == []
    assert (found.shape, found.missing) == ((8, 3), "6 of 24 elements are there, and the one at [0, 0] is not")
    assert found.pieces[0].start == (4, 0)
    assert_bits(found.pieces[0].tensor, local)


# --- what no genuine file has ----------------------------------------------------------------------------------------

UTILS = "torch._utils"
META, SPARSE_CALL, QUANTISED = (
    name(UTILS, each) for each in ("_rebuild_meta_tensor_no_storage", "_rebuild_sparse_tensor", "_rebuild_qtensor")
)
SUBCLASS, WRAPPER = name("torch._tensor", "_rebuild_from_type_v2"), name(UTILS, "_rebuild_wrapper_subclass")
COO, FLOAT, FALSE = name("torch", "sparse_coo"), name("torch", "float32"), b"\x89"
EIGHT_BIT = name("torchao.optim.subclass_8bit", "OptimState8bit")
DTENSOR = name("torch.distributed.tensor", "DTensor")
SHARDED = name("torch.distributed._shard.sharded_tensor.api", "ShardedTensor")
CODES = storage(kind="QInt8Storage", elements=24)


def wrapped(kind, state, shape=(2, 3)):
    """A tensor that wraps others, as its pickle has it."""
    arguments = items(kind, FLOAT, numbers(*shape), numbers(3, 1), number(0), b"N", text("cpu"), FALSE)
    return call(SUBCLASS, WRAPPER, kind, arguments, state)


def quantiser(*parts):
    return items(name("torch", "per_tensor_affine"), *parts)


def scaled(value=0.5):
    return b"G" + struct.pack(">d", value)


def integers(shape):
    """An int64 tensor over the 24 bytes of the storage."""
    return tensor(storage(kind="LongStorage", elements=3), 0, shape, (1,) * len(shape))


BAD = {
    "meta of no type": (call(META, number(1), numbers(2), numbers(1), FALSE), "an element type that is none"),
    "meta of a negative size": (call(META, FLOAT, numbers(-2), numbers(1), FALSE), "a shape that is none"),
    "meta of rank 65": (call(META, FLOAT, numbers(*[1] * 65), numbers(1), FALSE), "a shape that is none"),
    "sparse of no layout": (call(SPARSE_CALL, number(1), items()), "a layout or data"),
    "sparse of no tensors": (call(SPARSE_CALL, COO, items(number(1), number(2), numbers(3))), "indices that are none"),
    "sparse with floats as indices": (call(SPARSE_CALL, COO, items(tensor(), tensor(), numbers(3))), "indices that are none"),
    "sparse of other shapes": (call(SPARSE_CALL, COO, items(integers((1, 2)), integers((3,)), numbers(3))), "for values of shape"),
    "sparse of too many dimensions": (call(SPARSE_CALL, COO, items(integers((3, 1)), integers((1,)), numbers(3))), "in a sparse tensor of shape"),
    "compressed without rows": (call(SPARSE_CALL, name("torch", "sparse_csr"), items(*[integers((3,))] * 3, numbers(3))), "dimensions for shape"),
    "quantised with a huge stride": (call(QUANTISED, CODES, number(0), numbers(2), numbers(1 << 40), quantiser(scaled(), number(0)), FALSE, NO_HOOKS), "of a storage that has 24"),
    "quantised by nothing": (call(QUANTISED, CODES, number(0), numbers(2), numbers(1), items(), FALSE, NO_HOOKS), "a quantiser that is none"),
    "quantised by text": (call(QUANTISED, CODES, number(0), numbers(2), numbers(1), quantiser(text("1"), number(0)), FALSE, NO_HOOKS), "str where float is due"),
    "a tensor of a device without values": (call(name(UTILS, "_rebuild_device_tensor_from_numpy"), b"N", FLOAT, text("xla"), FALSE), "values that are none"),
    "codes without scales": (wrapped(EIGHT_BIT, b"}" + text("codes") + tensor() + b"s"), "codes or scales that are none"),
    "codes that are no dict": (wrapped(EIGHT_BIT, b"N"), "NoneType where dict is due"),
    "a mesh without a part": (wrapped(DTENSOR, b"}"), "a part that is none"),
    "a mesh without placements": (wrapped(DTENSOR, b"}" + text("_local_tensor") + tensor() + b"s"), "placements that are none"),
    "shards that are no list": (wrapped(SHARDED, items(number(1))), "int where list is due"),
    "a shard of nothing": (wrapped(SHARDED, items(b"]Na")), "a shard without values"),
    "shards without end": (wrapped(SHARDED, items(b"](" + b"N" * 17 + b"e")), "17 shards of one tensor"),
    "a date of 13 months": (call(name("datetime", "date"), b"C\x04\x07\xe8\x0d\x01"), "a date that is none"),
    "a date too short": (call(name("datetime", "date"), b"C\x01\x07"), "1 bytes for a date"),
    "an hour of 99": (call(name("datetime", "time"), b"C\x06\x63\0\0\0\0\0"), "a time that is none"),
    "a duration of text": (call(name("datetime", "timedelta"), text("1")), "str where int is due"),
    "a name without end": (call(name("builtins", "getattr"), name("a", "b"), text("x" * 300)), "a name longer than any"),
    "a layout of no name": (call(name("torch.serialization", "_get_layout"), number(1)), "int where str is due"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_arguments_that_no_genuine_file_has(case, forged):
    """Each constructor checks what it is given before it uses it, and says what it expected."""
    node, reason = BAD[case]
    with pytest.raises(Damaged, match=reason):
        forged(node)


LEFT_ALONE = {
    "a subclass that wraps something unknown": wrapped(name("my", "Tensor"), b"N"),
    "a nested tensor": call(name(UTILS, "_rebuild_nested_tensor"), *[b"N"] * 4),
    "a layout of none of ours": call(SPARSE_CALL, name("torch", "sparse_new"), items()),
    "getattr of a value": call(name("builtins", "getattr"), number(1), text("real")),
    "a quantiser of another kind": call(
        QUANTISED, CODES, number(0), numbers(2), numbers(1), items(name("torch", "per_channel_other")), FALSE, NO_HOOKS
    ),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_what_stays_a_record(case, forged):
    """What is not understood is not guessed: it stays a call that was not made."""
    assert isinstance(forged(LEFT_ALONE[case]), Call)


def test_tensors_as_keys(forged):
    """State keyed by tensors, as a pickled optimizer has it, is kept; two of them are told apart by identity."""
    found = forged(b"}(" + tensor() + number(1) + tensor() + number(2) + b"u")
    assert [type(key) for key in found] == [StoredTensor, StoredTensor]
