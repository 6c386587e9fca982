"""Surgery: everything that knows a parameter changes with it, or nothing does."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

import optstate
from optstate import schedule as s
from optstate.errors import EditError
from tests.editing import OPTIMIZERS, everything, trained


def net():
    """An embedding whose weight the head shares, and a layer between them."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "mid": nn.Linear(4, 4), "head": nn.Linear(4, 6)})
    model["head"].weight = model["embed"].weight
    return model


def forward(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model["embed"].num_embeddings, (8,), generator=generator)
    middle = model["mid"] if "mid" in model else model["middle"]
    return nn.functional.cross_entropy(model["head"](middle(model["embed"](tokens)).tanh()), tokens)


def train(model, optimizer, steps=3, also=lambda: None):
    for seed in range(steps):
        optimizer.zero_grad()
        forward(model, seed).backward()
        optimizer.step()
        also()


def begun(cls=torch.optim.AdamW, **options):
    """A model, its optimizer after some steps with gradients still there, and the state."""
    model = net()
    groups = [
        {"params": [(n, p) for n, p in model.named_parameters() if n.endswith("weight")]},
        {"params": [(n, p) for n, p in model.named_parameters() if n.endswith("bias")], "lr": 0.1},
    ]
    optimizer = cls(groups, lr=0.01, **options)
    train(model, optimizer)
    return model, optimizer, optstate.attach(optimizer, model)


def whole(model, *optimizers):
    """All that surgery could change."""
    return [
        everything(model, *optimizers),
        [(name, id(module), repr(module)) for name, module in model.named_modules()],
        [(id(p), p.requires_grad, id(p.grad), dict(vars(p))) for p in model.parameters()],
        [list(group.get("param_names", ())) for optimizer in optimizers for group in optimizer.param_groups],
        [list(module._parameters) for module in model.modules()],
    ]


class Stop(Exception):
    """What goes wrong in the middle."""


def go_wrong(state, do, ema=None):
    """Something raises when the surgery is nearly over."""
    with state.surgery(ema=ema) as cut:
        do(cut)
        raise Stop


def several(*verbs):
    def do(cut):
        for verb in verbs:
            verb(cut)

    return do


# --- one parameter, everywhere --------------------------------------------------------------------------------------


def test_a_vocabulary_grows_under_every_name():
    """A tied weight grows in the embedding, the head, its group at its place, the state in its order; names stay true."""
    model, optimizer, state = begun()
    old, order = model["embed"].weight, [name for name in state if state[name].slots]
    entries = list(optimizer.state)
    with state.surgery("two tokens more") as cut:
        cut.grow("embed.weight", rows=torch.zeros(2, 4))
        cut.grow("head.bias", rows=torch.zeros(2))
    new = model["embed"].weight
    assert model["head"].weight is new
    assert new is not old
    assert torch.equal(new[:6], old)
    assert optimizer.param_groups[0]["params"][0] is new
    assert [key is entry for key, entry in zip(optimizer.state, entries, strict=True)].count(False) == 2
    assert list(state) == order
    assert (model["embed"].num_embeddings, model["head"].out_features) == (8, 8)
    assert not optstate.diagnose(optimizer, model=model).findings
    train(model, optimizer)
    assert not optstate.diagnose(optimizer, model=model).findings


def test_statistics_of_channels_go_along():
    """What a normalisation knows of each channel follows its weight, in the average too, and comes back with undo."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    ema = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        ema.update_parameters(model)
    state = optstate.attach(optimizer, model)
    before = {name: value.clone() for name, value in (*model.named_buffers(), *ema.named_buffers())}
    with state.surgery(ema=ema) as cut:
        cut.keep_rows("[01].*", [3, 1])
        cut.keep_rows("2.weight", [3, 1], dim=1)
        cut.grow("0.weight", rows=torch.randn(1, 3))
        for name in ("0.bias", "1.weight", "1.bias"):
            cut.grow(name, rows=torch.ones(1))
        cut.grow("2.weight", rows=torch.zeros(2, 1), dim=1)
    assert model[1].num_features == 3
    for name, fresh in (("running_mean", 0.0), ("running_var", 1.0)):
        for where, live in ((f"1.{name}", model[1]), (f"module.1.{name}", ema.module[1])):
            old = before[where]
            assert torch.equal(getattr(live, name), torch.stack([old[3], old[1], torch.tensor(fresh)]))
    optimizer.zero_grad()
    model(torch.randn(8, 3)).square().sum().backward()
    state.undo()
    after = dict((*model.named_buffers(), *ema.named_buffers()))
    assert all(torch.equal(after[name], value) for name, value in before.items() if "num_batches" not in name)


def test_attributes_hooks_and_gradients_go_along():
    """A new object has the old one's Python attributes, its hooks, which their handles still remove, and its gradient's rows."""
    model, _, state = begun()
    weight = model["mid"].weight
    weight.decay_me, called = False, []
    handle = weight.register_hook(lambda gradient: called.append("hook"))
    late = weight.register_post_accumulate_grad_hook(lambda parameter: called.append(parameter.shape))
    gradient = weight.grad.clone()
    with state.surgery() as cut:
        cut.keep_rows("mid.weight", [2, 0])
        cut.keep_rows("mid.bias", [2, 0])
    new = model["mid"].weight
    assert new.decay_me is False
    assert torch.equal(new.grad, gradient[[2, 0]])
    assert "hooks of mid.weight went along" in str(cut.change)
    new.sum().backward()
    assert called == ["hook", (2, 4)]
    handle.remove()
    late.remove()
    new.sum().backward()
    assert len(called) == 2


def test_frozen_parameters_stay_frozen_through_surgery():
    """Whether a parameter is trained is its own affair."""
    model, _, state = begun()
    model["mid"].weight.requires_grad_(False)
    with state.surgery() as cut:
        cut.keep_rows("mid.weight", [0, 1])
    assert not model["mid"].weight.requires_grad


def test_recurrent_layers_hold_the_new_weights():
    """An LSTM keeps a list of its weights besides; it has the new ones, and after a rollback the old ones."""
    model = nn.LSTM(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    state = optstate.attach(optimizer, model)
    old = model.weight_ih_l0
    with state.surgery() as cut:
        cut.replace("weight_ih_l0", nn.Parameter(old.detach() * 2))
    assert model._flat_weights[0] is model.weight_ih_l0 is not old
    state.undo()
    assert model._flat_weights[0] is model.weight_ih_l0 is old


def test_wrappers_are_seen_through():
    """Surgery on a compiled model reaches the module beneath, and averages of it by their names."""
    model, optimizer, _ = begun()
    compiled = torch.compile(model, backend="eager")
    ema = torch.optim.swa_utils.AveragedModel(model)
    with optstate.attach(optimizer, compiled).surgery(ema=ema) as cut:
        cut.keep_rows("mid.*", [0, 1, 2])
        cut.keep_rows("embed.weight", slice(0, 6))
    assert model["mid"].weight.shape == ema.module["mid"].weight.shape == (3, 4)


def test_what_would_not_notice_is_refused():
    """Wrappers that remember parameters, state over all parameters, shapes to come: each is told with what to do."""
    model = nn.Sequential(nn.Linear(2, 2))
    lbfgs = torch.optim.LBFGS(model.parameters())
    for verb in (
        lambda cut: cut.keep_rows("0.weight", [0]),
        lambda cut: cut.freeze("0.*"),
        lambda cut: cut.remove("0.bias"),
    ):
        with (
            pytest.raises(EditError, match="laid out over all its parameters"),
            optstate.attach(lbfgs, model).surgery() as cut,
        ):
            verb(cut)
    lazy = nn.Sequential(nn.LazyLinear(2))
    adam = torch.optim.Adam(lazy.parameters())
    with pytest.raises(EditError, match="has no shape yet"), optstate.attach(adam, lazy).surgery() as cut:
        cut.replace("0.weight", nn.Parameter(torch.ones(2)))
    sizeless = nn.ParameterDict({"scale": nn.Parameter(torch.tensor(1.0))})
    adam = torch.optim.Adam(sizeless.parameters())
    with pytest.raises(EditError, match="scale has no dimension 0"), optstate.attach(adam, sizeless).surgery() as cut:
        cut.keep_rows("scale", [0])


class Parallel(nn.parallel.DistributedDataParallel):
    """As DistributedDataParallel, without the processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


def test_parallel_wrappers_are_refused():
    """DistributedDataParallel reduces the gradients of the parameters that it was built with: refused, with the way out."""
    model, optimizer, _ = begun()
    state = optstate.attach(optimizer, Parallel(model))
    with pytest.raises(EditError, match="DistributedDataParallel remembers"), state.surgery():
        pass


def test_optimizers_nobody_described_are_refused_once_they_have_state():
    """What a row of an unknown slot is, nobody can tell; without state there is nothing to tell."""

    class Own(torch.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    model = nn.Sequential(nn.Linear(2, 3))
    optimizer = Own(model.parameters())
    with optstate.attach(optimizer, model).surgery() as cut:
        cut.keep_rows("0.*", [0, 1])
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(EditError, match="not described"), optstate.attach(optimizer, model).surgery() as cut:
        cut.keep_rows("0.*", [0])


def test_slots_of_another_shape_are_found():
    """M222: a weight that was resized through .data has slots of the old shape, which is told and not mended silently."""
    model, _, state = begun()
    model["mid"].bias.data = model["mid"].bias.data[:2]
    with pytest.raises(EditError, match="exp_avg is not shaped as its parameter"), state.surgery() as cut:
        cut.keep_rows("mid.bias", [0])


def test_not_in_the_middle_of_a_step_nor_of_an_edit():
    """A hook of the optimizer cannot operate on it, and an edit and a surgery of one optimizer exclude each other."""
    model, optimizer, state = begun()

    def operate(*_):
        with state.surgery() as cut:
            cut.remove("mid.bias")

    handle = optimizer.register_step_pre_hook(operate)
    with pytest.raises(EditError, match="in the middle of a step"):
        train(model, optimizer, 1)
    handle.remove()
    with state.surgery(), pytest.raises(EditError, match="open already"):
        state.select("*").reset_()
    with state.edit(), pytest.raises(EditError, match="open already"), state.surgery():
        pass
    with state.surgery() as cut:
        pass
    with pytest.raises(EditError, match="not open"):
        cut.remove("mid.bias")
    with pytest.raises(EditError, match="entered once"), cut:
        pass


# --- who else knows parameters --------------------------------------------------------------------------------------


class ShadowParams:
    """Keeps averages as torch_ema does: a list in the parameters' order, and weak references to those."""

    def __init__(self, parameters):
        parameters = list(parameters)
        self.shadow_params = [each.detach().clone() for each in parameters]
        self._params_refs = [weakref.ref(each) for each in parameters]

    def update(self):
        for average, parameter in zip(self.shadow_params, self._params_refs, strict=True):
            average.lerp_(parameter().detach(), 0.1)

    def named(self, model):
        return dict(zip([name for name, _ in model.named_parameters()], self.shadow_params, strict=True))


AVERAGES = {
    "AveragedModel": (torch.optim.swa_utils.AveragedModel, lambda ema, model: dict(ema.module.named_parameters())),
    "a copy": (copy.deepcopy, lambda ema, model: dict(ema.named_parameters())),
    "a dict": (lambda m: {n: p.detach().clone() for n, p in m.named_parameters()}, lambda ema, model: ema),
    "shadow_params": (lambda m: ShadowParams(m.parameters()), lambda ema, model: ema.named(model)),
}


@pytest.mark.parametrize("kind", sorted(AVERAGES))
def test_averages_follow_every_verb(kind):
    """Rows, names, parameters that come, go, are tied and part: the averages are those of the parameters, and go on."""
    make, named = AVERAGES[kind]
    model, _, state = begun()
    ema = make(model)
    before = {name: average.detach().clone() for name, average in named(ema, model).items()}
    with state.surgery(ema=ema) as cut:
        cut.keep_rows("embed.weight", [5, 1, 2])
        cut.keep_rows("head.bias", [5, 1, 2])
        cut.grow("mid.bias", rows=torch.full((1,), 7.0), fill="mean")
        cut.grow("mid.weight", rows=torch.full((1, 4), 7.0))
        cut.grow("embed.weight", rows=torch.full((3, 1), 7.0), dim=1)
    after = named(ema, model)
    assert torch.equal(after["embed.weight"][:, :4], before["embed.weight"][[5, 1, 2]])
    assert torch.equal(after["mid.bias"], torch.cat([before["mid.bias"], torch.full((1,), 7.0)]))
    with state.surgery(ema=ema) as cut:
        cut.replace("mid.bias", nn.Parameter(torch.zeros(5)))
        cut.untie("head.weight")
        cut.rename("mid.", "middle.")
        cut.remove("head.bias")
        cut.add("head.bias", nn.Parameter(torch.zeros(3)), beside="middle.bias")
        cut.add("middle.scale", nn.Parameter(torch.ones(2)), beside="middle.bias")
        cut.rename("middle.scale", "embed.scale")
    names = [name for name, _ in model.named_parameters()]
    assert names == ["embed.weight", "embed.scale", "middle.weight", "middle.bias", "head.weight", "head.bias"]
    after = named(ema, model)
    assert set(after) == set(names)
    assert [tuple(after[name].shape) for name in names] == [tuple(p.shape) for p in model.parameters()]
    assert torch.equal(after["middle.bias"], torch.cat([before["mid.bias"], torch.full((1,), 7.0)]))
    assert torch.equal(after["head.weight"], after["embed.weight"])
    with state.surgery(ema=ema) as cut:
        cut.tie("head.weight", "embed.weight")
    assert set(named(ema, model)) == set(names) - {"head.weight"}
    if kind == "shadow_params":
        ema.update()
    if kind == "AveragedModel":
        ema.update_parameters(model)
    if kind in ("a copy", "AveragedModel"):
        inner = ema if kind == "a copy" else ema.module
        assert inner["head"].weight is inner["embed"].weight


@pytest.mark.parametrize("kind", sorted(AVERAGES))
def test_a_failure_leaves_averages_as_they_were(kind):
    """An exception takes the averages back with everything else: the very tensors, in their order."""
    make, named = AVERAGES[kind]
    model, _, state = begun()
    ema = make(model)
    before = [(name, id(average)) for name, average in named(ema, model).items()]
    verbs = (
        lambda cut: cut.keep_rows("embed.weight", [0]),
        lambda cut: cut.rename("mid.", "middle."),
        lambda cut: cut.remove("head.bias"),
    )
    with pytest.raises(Stop):
        go_wrong(state, several(*verbs), ema)
    assert [(name, id(average)) for name, average in named(ema, model).items()] == before


def test_what_are_no_averages_is_told():
    """A wrong object, too few of them, or of another shape: refused before anything changes."""
    model, _, state = begun()
    with pytest.raises(EditError, match="these are no averages"):
        state.surgery(ema=3)
    with pytest.raises(EditError, match="has no copy of the model"):
        state.surgery(ema=nn.Linear(1, 1))
    few = ShadowParams(list(model.parameters())[:2])
    few.shadow_params.pop()
    with pytest.raises(EditError, match="not as many as"):
        state.surgery(ema=few)
    other = {"mid.bias": torch.zeros(9)}
    with pytest.raises(EditError, match="the average of mid.bias is not shaped"), state.surgery(ema=[other]) as cut:
        cut.keep_rows("mid.bias", [0])


def test_schedulers_of_torch_and_ours_go_on():
    """Curves of a group, of names and of buffers drive the parameters that are there now; torch's keep their groups."""
    model, optimizer, state = begun(torch.optim.SGD, momentum=0.9)
    torch_one = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    ours = s.Scheduler(optimizer, {"momentum": [s.linear(0.9, 0.5, 10), s.linear(0.9, 0.1, 10)]}, hook=True)
    fade = s.BufferSchedule(state, "momentum", s.linear(1, 0.5, 100), select="mid.*")
    with state.surgery() as cut:
        cut.keep_rows("embed.weight", [0, 1, 2, 3])
        cut.keep_rows("head.bias", [0, 1, 2, 3])
        cut.rename("mid.", "middle.")
        cut.keep_rows("middle.weight", [3, 2, 1, 0])
        cut.add("head.scale", nn.Parameter(torch.ones(1)), group=1, hyperparameters={"lr": 0.3})
    train(model, optimizer, 4, torch_one.step)
    assert [round(group["momentum"], 3) for group in optimizer.param_groups[:2]] == [0.74, 0.58]
    assert [group["lr"] for group in optimizer.param_groups] == [0.0025, 0.025, 0.075]
    before = state["middle.weight"].momentum.tensor.clone()
    fade.step()
    assert torch.allclose(state["middle.weight"].momentum.tensor / before, torch.tensor(0.995))
    found = optstate.diagnose(optimizer, model=model, scheduler=torch_one)
    assert {each.code for each in found} <= {"M413", "M103"} | {
        each.code for each in found if each.about.severity == "info"
    }
    ours.release()


def test_gradient_scalers_go_on_in_the_middle():
    """Between scaling and stepping, the scaled gradients of rows that stay go along: the scaler finds them, and steps."""
    model, optimizer, state = begun()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer.zero_grad()
    scaler.scale(forward(model)).backward()
    with state.surgery() as cut:
        cut.grow("embed.weight", rows=torch.zeros(1, 4))
        cut.grow("head.bias", rows=torch.zeros(1))
    before = model["embed"].weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(model["embed"].weight, before)


def test_several_optimizers():
    """Each parameter changes in the optimizer that has it; the journal says which."""
    model = net()
    muon = torch.optim.Muon([model["mid"].weight], lr=0.01)
    adam = torch.optim.Adam([p for p in model.parameters() if p is not model["mid"].weight])
    for seed in range(3):
        model.zero_grad()
        forward(model, seed).backward()
        muon.step()
        adam.step()
    state = optstate.attach({"muon": muon, "adam": adam}, model)
    with state.surgery() as cut:
        cut.keep_rows("mid.*", [0, 1, 2])
        cut.keep_rows("embed.weight", [True, True, True, False], dim=1)
        cut.keep_rows("mid.weight", [True, True, True, False], dim=1)
    assert state["mid.weight"].momentum.shape == (3, 3)
    assert [entry.optimizer for entry in state.journal] == ["adam, muon", "adam", "muon"]
    assert not optstate.diagnose({"muon": muon, "adam": adam}, model=model).findings
    with pytest.raises(EditError, match="which optimizer is meant"), state.surgery() as cut:
        cut.add("mid.extra", nn.Parameter(torch.ones(1)))


# --- replaced behind the optimizer's back ---------------------------------------------------------------------------


def test_a_replaced_parameter_is_bound_again():
    """M106: the model has other tensors; the optimizer follows by name, with its state to the bit, and trains them."""
    model, optimizer, state = begun()
    slots = {key: value.clone() for key, value in optimizer.state[model["mid"].weight].items()}
    model["mid"] = nn.Linear(4, 4)
    assert "M106" in {finding.code for finding in optstate.diagnose(optimizer, model=model)}
    with state.surgery() as cut:
        cut.replace("mid.weight")
        cut.replace("mid.bias")
    assert not optstate.diagnose(optimizer, model=model).findings
    assert all(torch.equal(optimizer.state[model["mid"].weight][key], value) for key, value in slots.items())
    before = model["mid"].weight.detach().clone()
    train(model, optimizer, 1)
    assert not torch.equal(model["mid"].weight, before)


def test_a_grown_parameter_that_is_in_the_model_already():
    """What resize_token_embeddings leaves behind: the model has a larger one, the optimizer the old; grow finds it."""
    model, optimizer, state = begun()
    larger = nn.Embedding(9, 4)
    with torch.no_grad():
        larger.weight[:6] = model["embed"].weight
    model["embed"] = larger
    model["head"] = nn.Linear(4, 9)
    model["head"].weight = larger.weight
    with state.surgery() as cut:
        cut.grow("embed.weight", fill="mean")
        cut.grow("head.bias")
    assert state["embed.weight"].momentum.shape == (9, 4)
    assert not optstate.diagnose(optimizer, model=model).findings


def test_which_one_was_replaced_must_be_clear():
    """Of two dead tensors of one shape nobody can tell which it was; old= says it. Where none is, add is the verb."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optstate.attach(optimizer, model)
    second = optimizer.state[model[1].weight]["momentum_buffer"]
    model[0], model[1] = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with pytest.raises(EditError, match="cannot be told"), state.surgery() as cut:
        cut.replace("1.weight")
    with state.surgery() as cut:
        cut.replace("1.weight", old="#1")
        cut.replace("0.weight")
    assert optimizer.state[model[1].weight]["momentum_buffer"] is second
    model.append(nn.Linear(2, 2, bias=False))
    with pytest.raises(EditError, match="no optimizer has anything"), state.surgery() as cut:
        cut.replace("2.weight")


def test_replace_by_rows_and_by_a_callable():
    """A map of rows takes old rows, and -1 for new ones; a callable makes each slot itself."""
    model, optimizer, state = begun()
    old = {key: value.clone() for key, value in optimizer.state[model["mid"].weight].items()}
    with state.surgery() as cut:
        cut.replace("mid.weight", nn.Parameter(torch.zeros(3, 4)), map=[2, -1, 0])
    assert torch.equal(state["mid.weight"].momentum.tensor[[0, 2]], old["exp_avg"][[2, 0]])
    assert torch.allclose(state["mid.weight"].second_moment.tensor[1], old["exp_avg_sq"][[2, 0]].mean(0))
    with state.surgery() as cut:
        cut.replace("mid.weight", nn.Parameter(torch.zeros(12)), map=lambda key, value: value.reshape(-1))
    assert state["mid.weight"].momentum.shape == (12,)


# --- parameters come and go -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - {"LBFGS", "Muon", "SparseAdam"}))
def test_frozen_parameters_do_not_move_and_come_back_to_the_bit(name):
    """Steps leave a frozen parameter and its state alone, a checkpoint has them, and thawed it goes on with them."""
    model, optimizer = trained(name)
    state = optstate.attach(optimizer, model)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    with state.surgery("only the head now") as cut:
        cut.freeze("0.*")
    entry = optimizer.state.get(model[0].weight, {})
    before = {key: (id(value), copy.deepcopy(value)) for key, value in entry.items()}
    weight = model[0].weight.detach().clone()
    for seed in range(3):
        optimizer.zero_grad()
        torch.manual_seed(seed)
        model(torch.randn(5, 4)).square().mean().backward()
        optimizer.step()
    assert torch.equal(model[0].weight, weight)
    assert {key: id(value) for key, value in entry.items()} == {key: held for key, (held, _) in before.items()}
    assert all(torch.equal(torch.as_tensor(entry[key]), torch.as_tensor(value)) for key, (_, value) in before.items())
    saved = optstate.named_state_dict(optimizer, model)
    assert set(saved["state"]["0.weight"]) == set(before)
    with state.surgery() as cut:
        cut.unfreeze("0.*")
    model(torch.ones(5, 4)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, weight)


def test_add_and_remove():
    """A parameter joins the group that is said, with recorded names and at the end; removed, it is None in the model."""
    model, optimizer, state = begun()
    with state.surgery() as cut:
        cut.add("mid.gain", nn.Parameter(torch.ones(4)), beside="mid.bias")
        cut.remove("mid.bias")
    assert model["mid"].bias is None
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["embed.weight", "mid.weight"],
        ["head.bias", "mid.gain"],
    ]
    assert len(optimizer.state) == 3
    train(model, optimizer)
    model["mid"].register_parameter("late", nn.Parameter(torch.ones(2)))
    with state.surgery() as cut:
        cut.add("mid.late", group=0, hyperparameters={"weight_decay": 0.5})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01, 0.5]
    assert state["mid.late"].facts.group == 2


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (lambda cut: cut.add("mid.new", group=0), "there is no parameter 'mid.new'"),
        (lambda cut: cut.add("mid.weight", group=0), "is in an optimizer already"),
        (lambda cut: cut.add("mid.weight", nn.Parameter(torch.ones(1)), group=0), "in the model already"),
        (lambda cut: cut.add("mid.forward", nn.Parameter(torch.ones(1)), group=0), "in the model already"),
        (lambda cut: cut.add("nowhere.new", nn.Parameter(torch.ones(1)), group=0), "there is no module 'nowhere'"),
        (lambda cut: cut.add("mid.new", torch.ones(1), group=0), "is to be a parameter"),
        (lambda cut: cut.add("mid.new", nn.Parameter(torch.ones(1))), "which param group"),
        (lambda cut: cut.add("mid.new", nn.Parameter(torch.ones(1)), group=7), "there is no group 7"),
        (lambda cut: cut.add("mid.new", nn.Parameter(torch.ones(1)), optimizer="b"), "there is no optimizer 'b'"),
        (lambda cut: cut.add("mid.new", nn.Parameter(torch.ones(1)), beside="mid.wieght"), "matches nothing"),
        (lambda cut: cut.rename("mid.wieght", "mid.new"), "matches nothing"),
        (lambda cut: cut.rename("mid.weight", "mid.bias"), "there is a 'mid.bias' in the model"),
        (lambda cut: cut.rename("mid.weight", "nowhere.weight"), "there is no module 'nowhere'"),
        (lambda cut: cut.rename("middle.", "mid."), "there is no module 'middle.'"),
        (lambda cut: cut.tie("head.weight", "embed.weight"), "one parameter already"),
        (lambda cut: cut.tie("mid.weight", "embed.weight"), "cannot be tied"),
        (lambda cut: cut.tie("mid.wieght", "embed.weight"), "there is no parameter 'mid.wieght'"),
        (lambda cut: cut.untie("mid.weight"), "tied to nothing"),
        (lambda cut: cut.untie("mid.wieght"), "is no parameter"),
        (lambda cut: cut.remove("nothing"), "matches nothing"),
        (lambda cut: cut.replace("*", nn.Parameter(torch.ones(1))), "means several parameters"),
    ],
)
def test_verbs_on_parameters_that_make_no_sense(verb, message):
    """Names that are not there, or there already, groups that are not there: told, and nothing has changed."""
    model, optimizer, state = begun()
    before = whole(model, optimizer)
    both = several(lambda cut: cut.keep_rows("embed.weight", [1, 0]), verb)
    with pytest.raises(optstate.OptstateError, match=message), state.surgery() as cut:
        both(cut)
    assert whole(model, optimizer) == before


def test_untied_parameters_go_their_own_way_and_come_together_again():
    """Untied, each name has its own copy of weight and state; tied, the state of one stays, or the mean (F64) of both."""
    model, optimizer, state = begun()
    with state.surgery() as cut:
        cut.untie("head.weight")
    assert torch.equal(model["head"].weight, model["embed"].weight)
    assert state["head.weight"].momentum.tensor is not state["embed.weight"].momentum.tensor
    assert torch.equal(state["head.weight"].momentum.tensor, state["embed.weight"].momentum.tensor)
    assert optimizer.param_groups[0]["param_names"] == ["embed.weight", "head.weight", "mid.weight"]
    train(model, optimizer)
    moments = [state[name].momentum.tensor.clone() for name in ("embed.weight", "head.weight")]
    assert not torch.equal(*moments)
    with state.surgery() as cut:
        cut.tie("head.weight", "embed.weight", state="mean")
    assert model["head"].weight is model["embed"].weight
    assert torch.equal(state["embed.weight"].momentum.tensor, (moments[0] + moments[1]) / 2)
    assert not optstate.diagnose(optimizer, model=model).findings
    train(model, optimizer)


def test_states_of_other_ages_have_no_mean():
    """F64 needs a common count: with another, the mean is refused and the first one's is offered."""
    _, _, state = begun()
    with state.surgery() as cut:
        cut.untie("head.weight")
    state["head.weight"].step.set_(1)
    with pytest.raises(EditError, match="step differs"), state.surgery() as cut:
        cut.tie("head.weight", "embed.weight", state="mean")


def test_a_module_gets_another_name_at_its_place():
    """Renamed, everything follows: recorded names, the order of modules, the journal."""
    model, optimizer, state = begun()
    with state.surgery() as cut:
        cut.rename("mid.", "middle.")
        cut.rename("middle.bias", "embed.shift")
    assert list(model._modules) == ["embed", "middle", "head"]
    assert optimizer.param_groups[1]["param_names"] == ["embed.shift", "head.bias"]
    assert state["middle.weight"].momentum.shape == (4, 4)
    assert not optstate.diagnose(optimizer, model=model).findings


# --- all or nothing -------------------------------------------------------------------------------------------------


def operate(cut):
    """A bit of everything."""
    cut.keep_rows("embed.weight", [0, 2, 4])
    cut.keep_rows("head.bias", [0, 2, 4])
    cut.grow("mid.weight", rows=torch.ones(2, 4), like=[0, 1], fill="copy")
    cut.grow("mid.bias", rows=torch.ones(2))
    cut.grow("embed.weight", rows=torch.ones(3, 2), dim=1)
    cut.untie("head.weight")
    cut.freeze("mid.*")
    cut.rename("mid.", "middle.")
    cut.add("middle.gain", nn.Parameter(torch.ones(2)), group=1, hyperparameters={"lr": 1.0})
    cut.remove("head.bias")


def test_an_exception_takes_all_of_it_back():
    """Every object is the very one that it was, with the bits that it had, and the journal is empty."""
    model, optimizer, state = begun()
    before = whole(model, optimizer)
    with pytest.raises(Stop):
        go_wrong(state, operate)
    assert whole(model, optimizer) == before
    assert len(state.journal) == 0


def test_a_dry_run_tells_and_changes_nothing():
    """What would be done is told entry by entry; nothing is."""
    model, optimizer, state = begun()
    before = whole(model, optimizer)
    with state.surgery("what if", dry_run=True) as cut:
        operate(cut)
    assert whole(model, optimizer) == before
    assert not cut.change.made
    assert len(cut.change.entries) == 10


def test_undo_takes_a_surgery_back():
    """One call, and all objects are those of before; the journal keeps the entries, as undone."""
    model, optimizer, state = begun()
    before = whole(model, optimizer)
    with state.surgery("try") as cut:
        operate(cut)
    assert len(state.journal) == 10
    state.undo()
    assert whole(model, optimizer) == before
    assert all(entry.undone for entry in state.journal)
    train(model, optimizer)


def test_undo_is_refused_when_something_else_happened():
    """After a step the old state is of another past; without a backup there is none."""
    model, optimizer, state = begun()
    with state.surgery() as cut:
        cut.keep_rows("mid.weight", [3, 2, 1, 0])
    train(model, optimizer, 1)
    with pytest.raises(EditError, match="can no longer be undone"):
        state.undo()
    with state.surgery(backup=False) as cut:
        cut.keep_rows("mid.weight", [3, 2, 1, 0])
    assert not state.journal[-1].backup
    with pytest.raises(EditError, match="no edit to undo"):
        state.undo()


def test_an_edit_that_was_taken_back_does_not_stand_in_the_way_of_undo():
    """A dry run after a surgery writes and puts back: the surgery can still be undone."""
    model, optimizer, state = begun()
    before = whole(model, optimizer)
    with state.surgery() as cut:
        cut.keep_rows("mid.weight", [3, 2, 1, 0])
    with state.edit(dry_run=True) as edit:
        edit.select("*").reset_()
    state.undo()
    assert whole(model, optimizer) == before


def test_a_verb_that_failed_spoils_the_whole():
    """Whoever catches the error of a verb and goes on gets nothing half done."""
    model, optimizer, state = begun()
    before = whole(model, optimizer)

    def catch(cut):
        cut.keep_rows("mid.weight", [0, 1])
        with pytest.raises(EditError, match="no row 9"):
            cut.keep_rows("mid.bias", [9])

    with pytest.raises(EditError, match="a verb of this surgery failed"), state.surgery() as cut:
        catch(cut)
    assert whole(model, optimizer) == before


def test_a_parameter_that_was_given_is_as_it_was_after_a_failure():
    """What the user passes in gets attributes and gradient of the old one, and loses them again."""
    _, _, state = begun()
    given = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
    with pytest.raises(Stop):
        go_wrong(state, lambda cut: cut.replace("mid.weight", given))
    assert not given.requires_grad
    assert given.grad is None
    assert not vars(given)


def test_the_journal_says_what_was_done():
    """Counts, sizes and the size of the next update of new rows, with the note."""
    _, _, state = begun()
    with state.surgery("why") as cut:
        cut.grow("embed.weight", rows=torch.zeros(2, 4), fill="mean")
    (entry,) = state.journal
    assert (entry.verb, entry.note, entry.selection, entry.slots) == ("grow", "why", "embed.weight", 3)
    assert dict(entry.arguments) == {"from": 6, "to": 8, "fill": "mean"}
    _, after, fresh = entry.effect
    assert 0 < after <= fresh
    assert optstate.state.journal.JournalEntry.of(entry.document()) == entry


def test_checkpoints_of_a_model_after_surgery(tmp_path):
    """What surgery made is saved and restored by name as anything else, frozen state and journal with it."""
    model, optimizer, state = begun()
    with state.surgery() as cut:
        operate(cut)
    optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, step=3)
    again, other, twin = begun()
    with twin.surgery() as cut:
        operate(cut)
    optstate.restore(tmp_path / "ck", model=again, optimizer=other)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for key, value in optimizer.state.get(ours, {}).items():
            assert torch.equal(other.state[theirs][key], value)
