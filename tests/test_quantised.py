"""Slots in codes: what they stand for, and how they come to the libraries' live optimizers and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

import optstate
from optstate.formats.containers.quantised import Blockwise
from optstate.formats.opening import open_checkpoint
from optstate.live.quantised import Codes, Form, Loss, decoded, encoded, gathered
from optstate.live.quantising import Forms
from optstate.live.tensors import HeldTensor, is_quantised, live_entry
from optstate.optimizers.growth import resized
from optstate.optimizers.registry import by_class
from optstate.resume.materialise import materialise

LINES = torch.linspace(-1, 1, 256)


def codes_of(shape=(3, 100), block=256, qmap=LINES, parts=()):
    """Codes that a seed decides."""
    generator = torch.Generator().manual_seed(0)
    levels, count = len(qmap), torch.Size(shape).numel()
    codes = torch.randint(levels, (count,), generator=generator, dtype=torch.uint8)
    each = count // max(1, torch.Size(parts).numel())
    scale = torch.rand((*parts, -(-each // block)), generator=generator)
    stored = codes.reshape(shape) if levels > 16 else codes[::2] << 4 | codes[1::2]
    return Codes(stored, scale, qmap, tuple(shape), block)


def reference(codes: Codes) -> Blockwise:
    return Blockwise(HeldTensor(codes.codes), HeldTensor(codes.scale), HeldTensor(codes.qmap), codes.shape, codes.block)


# --- codes, without any library -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "block", "levels", "parts"),
    [((3, 100), 256, 256, ()), ((512,), 256, 256, ()), ((2, 5, 77), 256, 256, (2,)), ((4, 64), 128, 16, ())],
)
def test_codes_in_memory_are_worth_what_they_are_worth_in_a_file(shape, block, levels, parts):
    """Two readers, one with torch and one with numpy, give the same bits."""
    codes = codes_of(shape, block, torch.linspace(-1, 1, levels), parts)
    read = materialise(reference(codes))
    assert isinstance(read, Codes)
    assert read.values().numpy().tobytes() == reference(codes).array().tobytes()
    assert read.codes.data_ptr() != codes.codes.data_ptr(), "what is read belongs to nobody else"


def test_fp8_codes_are_numbers():
    """Without a map, the codes are the numbers themselves."""
    codes = Codes(torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn), torch.tensor([0.5]), None, (2,), 256)
    assert codes.values().tolist() == [0.5, -1.0]
    held = Blockwise(HeldTensor(codes.codes), HeldTensor(codes.scale), None, (2,), 256)
    assert torch.equal(Codes.of(held, materialise).values(), codes.values())


def test_loss_is_measured():
    """The root mean square of what is lost, relative to what was there, and how much became zero."""
    assert Loss.between(torch.tensor([3.0, -4.0]), torch.tensor([3.0, -4.0])) == (0.0, 0)
    assert Loss.between(torch.zeros(2), torch.zeros(2)) == (0.0, 0)
    loss = Loss.between(torch.tensor([3.0, 4.0], dtype=torch.bfloat16), torch.tensor([3.0, 0.0]))
    assert loss == (pytest.approx(0.8), 1)
    assert str(loss) == "error 80.00%, 1 value became 0"


class _Plain(Form):
    """A form that needs no library: codes by the nearest value of the map."""

    def quantise(self, values):
        scale = values.abs().amax().reshape(1).clamp(min=1e-12)
        codes = (values.reshape(-1, 1) / scale - self.qmap).abs().argmin(1).to(torch.uint8)
        return Codes(codes.reshape(self.shape), scale, self.qmap, self.shape, self.block)

    def hold(self, codes):
        return dict(zip(self.keys, (codes.codes, codes.scale, codes.qmap), strict=True))


FORM = _Plain(("state1", "absmax1", "qmap1"), (2, 100), 256, 1, LINES)


def test_codes_written_alike_travel_as_they_are():
    """Equal blocks and an equal map: not one code is written anew; anything else is, and says so."""
    same = codes_of((2, 100))
    assert FORM.takes(same)
    assert FORM.takes(reference(same))
    assert FORM.kept(same)["state1"] is same.codes
    assert FORM.loss(same) == (0.0, 0)
    assert not FORM.takes(codes_of((200,)))
    for other in (codes_of((2, 100), 128), codes_of((2, 100), qmap=LINES / 2), torch.ones(2, 100)):
        assert not FORM.takes(other)
        assert 0 <= FORM.loss(other).error < 0.01
    assert str(FORM) == "8-bit blocks of 256"


def test_entries_are_gathered_decoded_and_encoded():
    """Three keys become one slot in codes, one slot in values, and three keys again; what has no codes passes through."""
    codes = codes_of((2, 100))
    stored = {"step": 3, "state1": codes.codes, "absmax1": codes.scale, "qmap1": codes.qmap, "state2": torch.ones(200)}
    held = {key: HeldTensor(value) if torch.is_tensor(value) else value for key, value in stored.items()}
    found = gathered(held)
    assert list(found) == ["step", "state1", "state2"]
    read = {key: materialise(value) for key, value in found.items()}
    values = decoded(read)
    assert torch.equal(values["state1"], codes.values())
    again = encoded(read, {"state1": FORM})
    assert again.keys() == stored.keys()
    assert all(torch.equal(again[key], stored[key]) for key in stored if key != "step")
    assert torch.equal(encoded(read, {})["state1"], codes.values()), "no form, so values"
    assert gathered({"absmax1": held["absmax1"]}) == {"absmax1": held["absmax1"]}, "scales without codes stay"


def test_most_optimizers_have_no_forms():
    """For an optimizer that keeps plain values there is nothing to ask."""
    parameter = torch.nn.Parameter(torch.ones(64, 96))
    assert Forms(torch.optim.AdamW([parameter])).of(parameter) == {}


# --- the libraries ---------------------------------------------------------------------------------------------


def rare(test):
    """Needs a library that `make test-all` installs; its own warnings do not count."""
    return pytest.mark.whole(pytest.mark.slow(pytest.mark.filterwarnings("ignore")(test)))


SHAPES = {"long": (64, 96), "odd": (65, 67), "short": (96,)}
TORCHAO = ("AdamW8bit", "AdamW4bit", "AdamWFp8", "Adam8bit")
BITSANDBYTES = (
    "AdamW8bit",
    "PagedAdam8bit",
    "LAMB8bit",
    "AdEMAMix8bit",
    "Lion8bit",
    "SGD8bit",
    "RMSprop8bit",
    "Adagrad8bit",
)


def library(name):
    if name == "torch":
        return torch.optim
    module = pytest.importorskip({"torchao": "torchao.optim"}.get(name, name), reason=f"{name} is not installed")
    return module.optim if name == "bitsandbytes" else module


@pytest.fixture(autouse=True)
def _eager():
    """The step of torchao compiles itself, which takes a compiler of C."""
    with torch.compiler.set_stance("force_eager"):
        yield


def built(cls, options=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES.values()]
    options = {"momentum": 0.9} if "SGD" in cls.__name__ and options is None else options or {}
    return cls(parameters, lr=0.01, **options)


def step(optimizer, seed):
    generator = torch.Generator().manual_seed(100 + seed)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = (
            torch.randn(parameter.shape, generator=generator) * torch.randn(parameter.shape, generator=generator).exp()
        )
    optimizer.step()
    return optimizer


def stepped(cls, **options):
    optimizer = built(cls, options or None)
    for seed in range(3):
        step(optimizer, seed)
    return optimizer


def parameters(optimizer):
    return optimizer.param_groups[0]["params"]


def moved(entry: Mapping[str, object], optimizer, parameter):
    """What becomes of a saved entry on its way to a live optimizer."""
    read = {key: materialise(value) for key, value in gathered(entry).items()}
    return encoded(read, Forms(optimizer).of(parameter))


def parts(entry):
    """An entry with the parts of torchao's tensors beside each other."""
    found: dict[str, Any] = {}
    for key, value in entry.items():
        if torch.is_tensor(value) and is_quantised(value):
            inside: Any = value
            found |= {f"{key}.{name}": getattr(inside, name) for name in inside.__tensor_flatten__()[0]}
        else:
            found[key] = value
    return found


def assert_same(one, other):
    """Two entries have the same keys, types and bits."""
    one, other = parts(one), parts(other)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert type(value) is type(other[key])
        assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key], key


CODED = [("torchao", name) for name in TORCHAO] + [("bitsandbytes", name) for name in BITSANDBYTES]


@rare
@pytest.mark.parametrize(("where", "name"), CODED)
@pytest.mark.parametrize("source", ["file", "live"])
def test_codes_come_back_to_the_bit(where, name, source, tmp_path):
    """From a file of the library or from a live optimizer: the same codes, scales and maps, and the same next steps."""
    optimizer = stepped(getattr(library(where), name))
    other = built(type(optimizer))
    if source == "file":
        torch.save(optimizer.state_dict(), tmp_path / "ck.pt")
        saved = [
            {key: slot.value for key, slot in each.slots.items()}
            for each in open_checkpoint(tmp_path / "ck.pt").state.values()
        ]
    else:
        saved = [live_entry(optimizer, parameter) for parameter in parameters(optimizer)]
    for entry, old, new in zip(saved, parameters(optimizer), parameters(other), strict=True):
        forms = Forms(other).of(new)
        coded = {key for key, value in gathered(entry).items() if isinstance(value, Blockwise)}
        assert coded == {key for key in forms if key in gathered(entry) and forms[key].takes(gathered(entry)[key])}
        assert other.state[new] == {}, "asking for forms leaves no state"
        other.state[new] = moved(entry, other, new)
        assert_same(other.state[new], optimizer.state[old])
        new.data.copy_(old.data)
    for seed in range(3, 6):
        step(optimizer, seed)
        step(other, seed)
        for old, new in zip(parameters(optimizer), parameters(other), strict=True):
            assert torch.equal(old, new)
            assert_same(other.state[new], optimizer.state[old])


PLAIN_TO_CODED = [
    *(("torch", "AdamW", "torchao", name) for name in ("AdamW8bit", "AdamW4bit", "AdamWFp8")),
    ("bitsandbytes", "AdamW32bit", "bitsandbytes", "AdamW8bit"),
    ("bitsandbytes", "AdEMAMix", "bitsandbytes", "AdEMAMix8bit"),
    ("bitsandbytes", "Lion32bit", "bitsandbytes", "Lion8bit"),
]


def theirs(where, value, form):
    """What the library itself makes of values, and what it reads from that."""
    if where == "torchao":
        buffer = form.optimizer._new_buffer(value, form.signed).copy_(value)
        return buffer.dequantize().float()
    from bitsandbytes import functional

    done = []
    for part in value.reshape(form.parts, -1):
        codes, state = functional.quantize_blockwise(part, form.qmap, blocksize=256)
        done.append(functional.dequantize_blockwise(codes, absmax=state.absmax, code=form.qmap, blocksize=256))
    return torch.stack(done).reshape(value.shape)


@rare
@pytest.mark.parametrize(("where", "name", "to", "coded"), PLAIN_TO_CODED)
def test_values_become_codes_as_the_library_makes_them(where, name, to, coded):
    """32 to 8 bits and back costs exactly what the library's own round trip costs; the next step works from there."""
    optimizer, other = stepped(getattr(library(where), name)), built(getattr(library(to), coded))
    quantised = 0
    for old, new in zip(parameters(optimizer), parameters(other), strict=True):
        entry, forms = live_entry(optimizer, old), Forms(other).of(new)
        other.state[new] = moved(entry, other, new)
        new.data.copy_(old.data)
        back = decoded({key: materialise(value) for key, value in gathered(live_entry(other, new)).items()})
        for key, value in optimizer.state[old].items():
            if key not in forms:
                assert torch.equal(back[key], value) if torch.is_tensor(value) else back[key] == value
                continue
            quantised += 1
            own = theirs(to, value, forms[key])
            assert torch.equal(back[key], own)
            assert forms[key].loss(value) == Loss.between(value, own)
            assert not forms[key].takes(entry[key])
    assert quantised
    before = [parameter.detach().clone() for parameter in parameters(other)]
    step(other, 3)
    step(optimizer, 3)
    for now, then, plain in zip(parameters(other), before, parameters(optimizer), strict=True):
        assert now.isfinite().all()
        assert not torch.equal(now, then)
        if "4bit" not in coded:
            assert torch.nn.functional.cosine_similarity((now - then).flatten(), (plain - then).flatten(), 0) > 0.95


@rare
@pytest.mark.parametrize(
    ("where", "name", "to", "coded"),
    [each for each in PLAIN_TO_CODED if each[0] == "bitsandbytes"] + [("torch", "AdamW", "torchao", "AdamW8bit")],
)
def test_codes_become_the_values_that_they_stand_for(where, name, to, coded):
    """8 to 32 bits loses nothing: the first step of the wide optimizer is the narrow one's own, to the rounding."""
    optimizer, other = stepped(getattr(library(to), coded)), built(getattr(library(where), name))
    for old, new in zip(parameters(optimizer), parameters(other), strict=True):
        assert Forms(other).of(new) == {}
        other.state[new] = moved(live_entry(optimizer, old), other, new)
        assert all(value.dtype == torch.float32 for value in other.state[new].values() if torch.is_tensor(value))
        new.data.copy_(old.data)
    step(optimizer, 3)
    step(other, 3)
    for old, new in zip(parameters(optimizer), parameters(other), strict=True):
        assert torch.allclose(old, new, rtol=1e-5, atol=1e-7)


@rare
def test_codes_cross_from_one_library_to_the_other():
    """Both write 8 bits by the same maps in the same blocks, so codes go over as they are, and the step agrees."""
    torchao, bitsandbytes = stepped(library("torchao").AdamW8bit), built(library("bitsandbytes").AdamW8bit)
    renamed = {"exp_avg": "state1", "exp_avg_sq": "state2"}
    old, new = parameters(torchao)[0], parameters(bitsandbytes)[0]
    entry = {renamed.get(key, key): value for key, value in gathered(live_entry(torchao, old)).items()}
    forms = Forms(bitsandbytes).of(new)
    assert all(forms[key].takes(entry[key]) for key in renamed.values())
    read = encoded({key: materialise(value) for key, value in entry.items()}, forms)
    assert torch.equal(read["state1"], torchao.state[old]["exp_avg"].codes)
    assert torch.equal(read["absmax2"], torchao.state[old]["exp_avg_sq"].scale)
    bitsandbytes.state[new] = {**read, "step": int(read["step"])}
    new.data.copy_(old.data)
    step(torchao, 3)
    step(bitsandbytes, 3)
    assert torch.allclose(old, new, rtol=1e-5, atol=1e-6)


def model_of(cls, seed, steps):
    """A model with one large and one small parameter, after some steps of the optimizer."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(64, 96)
    optimizer = cls(model.parameters(), lr=0.01)
    for number in range(steps):
        step(optimizer, number)
    return model, optimizer


@rare
@pytest.mark.parametrize("steps", [0, 2], ids=["new", "stepped"])
@pytest.mark.parametrize(
    ("where", "name"), [("torchao", "AdamW8bit"), ("torchao", "AdamW4bit"), ("bitsandbytes", "AdamW8bit")]
)
@pytest.mark.parametrize("writer", ["torch.save", "optstate", "converted"])
def test_restored_codes_are_exact(writer, where, name, steps, tmp_path):
    """A file of any writer, restored to a live optimizer that is new or has stepped: exact, and the next step agrees."""
    cls = getattr(library(where), name)
    (model, optimizer), (other_model, other) = model_of(cls, 0, 3), model_of(cls, 1, steps)
    path = tmp_path / "ck.pt"
    if writer == "optstate":
        optstate.save(path, model=model, optimizer=optimizer)
    else:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    if writer == "converted":
        path = optstate.convert(path, tmp_path / "ours").path
    plan = optstate.restore(path, model=other_model, optimizer=other)
    assert plan.exact, str(plan)
    step(optimizer, 3)
    step(other, 3)
    for old, new in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(old, new)
        assert_same(other.state[new], optimizer.state[old])


@rare
@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        (("bitsandbytes", "AdamW32bit"), ("bitsandbytes", "AdamW8bit"), "written in 8-bit blocks of 256: error 1."),
        (
            ("bitsandbytes", "AdamW8bit"),
            ("bitsandbytes", "AdamW32bit"),
            "the values of 8-bit blocks of 256, without loss",
        ),
        (("torchao", "AdamW8bit"), ("torch", "AdamW"), "AdamW8bit → AdamW"),
        (("torch", "AdamW"), ("torchao", "AdamWFp8"), "written in fp8 blocks of 256: error 2."),
    ],
)
def test_plan_tells_what_codes_cost(source, target, told):
    """What is written anew has the measured error in the plan, what is only read differently says that nothing is lost."""
    model, optimizer = model_of(getattr(library(source[0]), source[1]), 0, 3)
    other_model, other = model_of(getattr(library(target[0]), target[1]), 1, 2)
    policy = optstate.Policy(optimizer_change="convert")
    plan = optstate.plan(optstate.attach(optimizer, model), model=other_model, optimizer=other, policy=policy)
    assert told in str(plan)
    assert not plan.exact
    plan.apply()
    step(other, 3)
    assert all(parameter.isfinite().all() for parameter in other_model.parameters())


@rare
def test_which_parameters_are_coded_is_the_librarys_to_say():
    """Small and odd ones stay plain as each library has it, and overrides of one parameter hold, also before the first step."""
    optim = library("bitsandbytes")
    import bitsandbytes

    def keys(optimizer):
        return [sorted(Forms(optimizer).of(parameter)) for parameter in parameters(optimizer)]

    assert keys(built(optim.AdamW8bit)) == [["state1", "state2"], ["state1", "state2"], []]
    assert keys(built(optim.AdamW8bit, {"min_8bit_size": 5000})) == [["state1", "state2"], [], []]
    assert keys(built(optim.AdamW32bit)) == [[], [], []]
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    optimizer, wide = built(optim.AdamW8bit), built(optim.Adam)
    try:
        manager.override_config(parameters(optimizer)[0], "optim_bits", 32)
        manager.override_config(parameters(wide)[1], "optim_bits", 8)
        before = {key: dict(value) for key, value in manager.pid2config.items()}, dict(manager.index2config)
        assert keys(optimizer) == [[], ["state1", "state2"], []]
        assert keys(wide) == [[], ["state1", "state2"], []]
        assert ({key: dict(value) for key, value in manager.pid2config.items()}, manager.index2config) == before
        assert wide.name2qmap == {}
        assert optimizer.state == {}
        assert optimizer.initialized is False
        step(optimizer, 0)
        step(wide, 0)
        made = [
            [key for key, value in optimizer.state[each].items() if key.startswith("qmap")]
            for each in parameters(optimizer)
        ]
        assert made == [[], ["qmap1", "qmap2"], []]
    finally:
        manager.pid2config.clear()
    torchao = library("torchao")
    every = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    assert keys(built(torchao.AdamW8bit)) == [every, [], []]
    assert keys(built(torchao.AdamW8bit, {"block_size": 65})) == [[], every, []]


@rare
@pytest.mark.parametrize(("where", "name"), [("torchao", "AdamW8bit"), ("bitsandbytes", "AdamW8bit")])
def test_codes_grow(where, name):
    """A padded parameter: decoded, padded by the growth rule, and encoded as the optimizer keeps the larger one."""
    optimizer = stepped(getattr(library(where), name))
    old, larger = parameters(optimizer)[0], torch.nn.Parameter(torch.zeros(80, 96))
    other = type(optimizer)([larger], lr=0.01)
    read = decoded({key: materialise(value) for key, value in gathered(live_entry(optimizer, old)).items()})
    grown = resized(by_class(type(other)), read, (64, 96), (80, 96), other.param_groups[0], "pad", larger.detach())
    other.state[larger] = encoded(grown, Forms(other).of(larger))
    larger.grad = torch.randn(80, 96, generator=torch.Generator().manual_seed(5))
    other.step()
    update = larger.detach().abs() / 0.01
    assert update.isfinite().all()
    assert update[64:].max() <= 1.0
