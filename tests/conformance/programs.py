"""Models, data and steps that an optimizer is put into."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from optstate.proof.training import Training
from tests.conformance.row import Row

BEFORE, AFTER = 6, 3  # steps: a period of five is in its middle at the save
ROWS, WIDTH, CLASSES = 8, 64, 8  # 64 x 64 elements are enough for the slots that others quantise

# --- models and data ----------------------------------------------------------------------------------------


class Dense(nn.Module):
    """Two layers of one shape, a kernel, running statistics, dropout: whatever can be confused or forgotten."""

    def __init__(self, changed: bool, kernel: bool = True) -> None:
        super().__init__()
        for name in ("second", "first") if changed else ("first", "second"):
            self.add_module(name, nn.Linear(WIDTH, WIDTH))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        if kernel:
            self.kernel = nn.Conv2d(1, 4, 3, padding=1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        if "kernel" in self._modules:
            x = self.kernel(x.view(-1, 1, 8, 8)).mean(1).flatten(1)
        return self.head(self.dropout(self.norm(self.second(self.first(x).tanh()))))


class Matrices(nn.Module):
    """Nothing but matrices."""

    def __init__(self, changed: bool) -> None:
        super().__init__()
        for name in ("second", "first") if changed else ("first", "second"):
            self.add_module(name, nn.Linear(WIDTH, WIDTH, bias=False))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.second(self.first(x).tanh()))


class Sparse(nn.Module):
    """Embeddings whose gradients are sparse."""

    def __init__(self, changed: bool) -> None:
        super().__init__()
        for name in ("second", "first") if changed else ("first", "second"):
            self.add_module(name, nn.Embedding(20, WIDTH, sparse=True))

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[:, :4].abs() * 10).long() % 20
        return nn.functional.dropout(self.first(tokens) * self.second(tokens), 0.1)


class Batches:
    """Endless batches that know where they are; some of each is noise of torch's own generator."""

    def __init__(self) -> None:
        self.position = 0

    def next(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The next batch."""
        self.position += 1
        batch = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(self.position))
        return (batch + 0.1 * torch.randn(ROWS, WIDTH)).to(dtype)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.position = state["position"]


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Something to minimise."""
    return model(batch).abs().square().mean()


# --- optimizers and steps -----------------------------------------------------------------------------------


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    """Two param groups: matrices and kernels, and all the rest."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    split = [[each for each in parameters if each.ndim > 1], [each for each in parameters if each.ndim <= 1]]
    return [{"params": each} for each in split if each]


def optimizer_of(row: Row, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """The optimizer of a row."""
    module, _, name = row.optimizer.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    options = {key: torch.tensor(0.01) if value == "tensor" else value for key, value in row.options.items()}
    optimizer: torch.optim.Optimizer = cls(parameters, **options)
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()  # type: ignore[attr-defined]  # the schedule-free ones ask for it
    return optimizer


def plain(row: Row, model: nn.Module, *, groups: Any = None, graph: bool = False, **also: Any) -> Training:
    """The usual loop: zero, forward, backward, step."""
    optimizer, batches = optimizer_of(row, grouped(model) if groups is None else groups), Batches()

    def train_step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batches.next([*model.parameters()][-1].dtype))
        loss.backward(create_graph=graph)
        optimizer.step()
        return loss.detach()

    return Training(model, optimizer, train_step, loader=batches, **also)


def dense(row: Row, changed: bool) -> Training:
    """A model with everything, in two groups."""
    return plain(row, Dense(changed))


def curved(row: Row, changed: bool) -> Training:
    """For optimizers that differentiate the gradient once more."""
    return plain(row, Dense(changed), graph=True)


def flat(row: Row, changed: bool) -> Training:
    """Without a kernel."""
    return plain(row, Dense(changed, kernel=False))


def matrices(row: Row, changed: bool) -> Training:
    """Matrices alone."""
    return plain(row, Matrices(changed))


def sparse(row: Row, changed: bool) -> Training:
    """Sparse gradients."""
    return plain(row, Sparse(changed))


def closure(row: Row, changed: bool) -> Training:
    """A step that computes the loss itself, several times if it likes, of one group as LBFGS wants it."""
    model = Dense(changed)
    optimizer, batches = optimizer_of(row, list(model.parameters())), Batches()

    def train_step() -> Any:
        batch = batches.next()

        @torch.enable_grad()
        def again() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        return optimizer.step(again)

    return Training(model, optimizer, train_step, loader=batches)


def tagged(row: Row, changed: bool) -> Training:
    """Groups that say which of them are for Muon."""
    model = Dense(changed)
    return plain(row, model, groups=[{**group, "use_muon": number == 0} for number, group in enumerate(grouped(model))])


def around(row: Row, changed: bool) -> Training:
    """For an optimizer that is put around another one."""
    model = Dense(changed)
    return plain(row, model, groups=torch.optim.AdamW(grouped(model), lr=0.01))


def of_model(row: Row, changed: bool) -> Training:
    """For an optimizer that is given the model."""
    model = Dense(changed)
    return plain(row, model, groups=model)


def sharpness(row: Row, changed: bool) -> Training:
    """For an optimizer that looks at the loss nearby before another one takes the step."""
    based = replace(row, options={**row.options, "base_optimizer": torch.optim.AdamW, "lr": 0.01})
    return closure(based, changed)


class Fast(nn.Module):
    """Weights that are computed themselves, as meta-learning has them: no parameters, and in no `named_parameters`."""

    def __init__(self, _changed: bool) -> None:
        super().__init__()
        self.anchor = torch.zeros((), requires_grad=True)
        for name in ("first", "second"):
            self.register_buffer(name, torch.randn(WIDTH, WIDTH) / 8)
        self.grow()

    def grow(self) -> None:
        """Make the weights non-leaves once more: a step that can be differentiated refuses leaves."""
        for weight in self.buffers():
            weight.detach_().add_(0 * self.anchor)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout((x @ self.get_buffer("first")).tanh() @ self.get_buffer("second"), 0.1)


def differentiable(row: Row, changed: bool) -> Training:
    """A step that autograd records."""
    model = Fast(changed)
    optimizer, batches = optimizer_of(row, list(model.buffers())), Batches()

    def train_step() -> Tensor:
        model.grow()
        weights = list(model.buffers())
        loss = loss_of(model, batches.next())
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = gradient
        optimizer.step()
        return loss.detach()

    return Training(model, optimizer, train_step, loader=batches)


Program = Callable[[Row, bool], Training]
PLAIN: dict[str, Program] = {
    each.__name__: each
    for each in (dense, closure, curved, flat, matrices, tagged, around, of_model, sharpness, sparse, differentiable)
}
"""What an optimizer can be put into."""

TRIED = [name for name in PLAIN if name not in ("sparse", "differentiable")]
"""What is tried in turn with a class of another package, until it takes its steps."""
