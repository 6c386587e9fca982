"""Folders of the Hugging Face Trainer: genuine ones, of many models, whole, sharded, with adapters, and incomplete."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn

import optstate
from optstate.formats.layouts.hf_orders import in_model_order
from tests.hf import MODELS, assert_slots_of, library, model_of, quietly, trained
from tests.test_deepspeed import forge
from tests.truth import assert_is

library("transformers")
as_saved = __import__("tools.hf_orders", fromlist=["as_saved"]).as_saved

pytestmark = pytest.mark.slow

USUAL = (
    "LlamaForCausalLM",
    "GPT2LMHeadModel",
    "BertForMaskedLM",
    "T5ForConditionalGeneration",
    "MixtralForCausalLM",
    "ViTForImageClassification",
)


def names_in_file(model):
    """What the parameters that are trained are called in a file, in the model's order."""
    return as_saved(model, [name for name, each in model.named_parameters() if each.requires_grad])


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.whole) for name in MODELS]
)
def test_every_slot_by_name(tmp_path, name):
    """Names, groups, slots and values are those of the optimizer that ran, although safetensors keeps no order."""
    run = trained(tmp_path, model_of(name))
    opened = optstate.open(run.folder)
    assert (opened.format, opened.step, opened.unread) == ("Hugging Face Trainer", 3, ())
    assert [clue for clue in opened.clues if clue.code == "M118"] == []
    assert_slots_of(run, opened, names_in_file(run.model), "rule")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The checkpoint of a llama, and the run that wrote it."""
    return trained(tmp_path_factory.mktemp("llama"), model_of("LlamaForCausalLM"))


@pytest.fixture
def copy(llama, tmp_path):
    """A copy of that checkpoint, to be harmed."""
    return shutil.copytree(llama.folder, tmp_path / "checkpoint-3")


def test_llama(llama):
    """What a user sees is the live optimizer, name by name."""
    opened = optstate.open(llama.folder)
    assert_is(opened, llama.optimizer, llama.model, certainty="rule")
    assert {"trainer_state", "scheduler", "rng_state", "training_args"} <= {*opened.objects}
    assert opened.objects["trainer_state"]["global_step"] == 3


def test_shards(tmp_path, llama):
    """A model in many files is read as one."""
    with quietly():
        llama.model.save_pretrained(tmp_path, max_shard_size="1KB")
    for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"):
        shutil.copy(llama.folder / name, tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    opened = optstate.open(tmp_path)
    assert_is(opened, llama.optimizer, llama.model, certainty="rule")


@pytest.mark.parametrize("kept", [True, False])
def test_torch_file_keeps_the_order(copy, llama, kept):
    """With `pytorch_model.bin` the order is the file's own, whatever the model is."""
    (copy / "model.safetensors").unlink()
    torch.save(llama.model.state_dict(), copy / "pytorch_model.bin")
    if not kept:
        (copy / "config.json").unlink()
    assert_is(optstate.open(copy), llama.optimizer, llama.model, certainty="rule")


def test_tied_weights(tmp_path):
    """A tied weight is one parameter."""
    run = trained(tmp_path, model_of("LlamaForCausalLM", tie_word_embeddings=True))
    opened = optstate.open(run.folder)
    assert_is(opened, run.optimizer, run.model, certainty="rule")
    assert "lm_head.weight" not in opened.state


def test_frozen(tmp_path):
    """Frozen parameters are told as what no optimizer updates; the others keep their names."""
    model = model_of("LlamaForCausalLM")
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].requires_grad_(False)
    run = trained(tmp_path, model)
    opened = optstate.open(run.folder)
    assert [name for name in opened.state if opened.state[name].facts.certainty == "rule"]
    for name in opened.state:
        if opened.state[name].facts.certainty != "position":
            true = run.optimizer.state[model.get_parameter(name)]["exp_avg"]
            assert opened.state[name].momentum.array().tobytes() == true.numpy().tobytes()


def _with_loss(**modules):
    """A model of a user's own, which is none of transformers'."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            for name, module in modules.items():
                setattr(self, name, module)

        def forward(self, input_ids, labels=None):
            hidden = torch.nn.functional.one_hot(input_ids % 8, 8).float()
            for module in modules.values():
                for layer in module if isinstance(module, nn.ModuleList) else (module,):
                    hidden = layer(hidden)
            return {"loss": hidden.square().mean()}

    return Own()


def test_model_of_the_users_own(tmp_path):
    """Without a known order layers of a list are told apart by their numbers; what shapes leave open stays open."""
    torch.manual_seed(0)
    wide = nn.ModuleList([nn.Linear(8, 8, bias=False) for _ in range(11)])
    run = trained(
        tmp_path,
        _with_loss(
            zeta=nn.Linear(8, 6),
            alpha=nn.Linear(6, 8),
            layers=wide,
            one=nn.Linear(8, 5),
            two=nn.Linear(5, 5),
            ten=nn.Linear(5, 5),
        ),
    )
    opened = optstate.open(run.folder)
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    order = [names[each] for group in run.optimizer.param_groups for each in group["params"]]
    certain = dict(zip(order, opened.state.values(), strict=True))
    for name, found in certain.items():
        if found.facts.certainty == "position":
            assert name in found.facts.candidates
        else:
            assert found.name == name
    told = {name for name, found in certain.items() if found.facts.certainty != "position"}
    assert told == {
        *(f"layers.{number}.weight" for number in range(11)),
        "zeta.weight",
        "alpha.weight",
        "one.weight",
        "zeta.bias",
        "alpha.bias",
    }
    assert "M201" in {clue.code for clue in opened.clues}


def test_code_of_its_own(copy):
    """A model whose code came with it may have any order, whatever type it states."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "modeling.Llama"}}))
    opened = optstate.open(copy)
    certainties = Counter(parameter.facts.certainty for parameter in opened.state.values())
    assert certainties["position"] > 0
    assert all(
        parameter.facts.candidates for parameter in opened.state.values() if parameter.facts.certainty == "position"
    )


def test_order_that_a_shape_contradicts(copy, llama):
    """A wrong order is never told as a rule: shapes that disagree take every name back."""
    tree = torch.load(copy / "optimizer.pt", weights_only=True)
    group = tree["param_groups"][0]["params"]
    tree["state"][group[0]], tree["state"][group[3]] = tree["state"][group[3]], tree["state"][group[0]]
    torch.save(tree, copy / "optimizer.pt")
    opened = optstate.open(copy)
    assert "rule" not in {parameter.facts.certainty for parameter in opened.state.values()}


def test_older_groups(tmp_path):
    """Groups of older versions, where norms of their own kind decayed, are recognised by their sizes."""
    model = model_of("MistralForCausalLM")
    decay = [each for name, each in model.named_parameters() if "bias" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": [], "weight_decay": 0.0}], lr=0.01
    )
    run = trained(tmp_path, model, optimizers=(optimizer, None))
    assert_is(optstate.open(run.folder), run.optimizer, model, certainty="rule")


# --- adapters -----------------------------------------------------------------------------------------------------


def adapted(name, kind="LoraConfig", **options):
    peft = library("peft")
    with quietly():
        return peft.get_peft_model(model_of(name), getattr(peft, kind)(**options))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LoraConfig", {"r": 2, "target_modules": ["q_proj", "v_proj"]}),
        ("LoraConfig", {"r": 2, "target_modules": "all-linear", "use_dora": True}),
        ("LoraConfig", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("LoraConfig", {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}),
        ("LoHaConfig", {"r": 2, "target_modules": ["q_proj", "down_proj"]}),
        ("LoKrConfig", {"r": 2, "target_modules": ["q_proj", "down_proj"]}),
        ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
        ("AdaLoraConfig", {"r": 2, "target_modules": ["q_proj", "v_proj"], "total_step": 10}),
        ("OFTConfig", {"oft_block_size": 4, "target_modules": ["q_proj", "v_proj"]}),
        ("VeraConfig", {"r": 2, "target_modules": ["q_proj", "v_proj"]}),
    ],
)
def test_adapter(tmp_path, kind, options):
    """The parameters of an adapter have the names that they have in the live model."""
    model = adapted("LlamaForCausalLM", kind, **options)
    run = trained(tmp_path, model)
    opened = optstate.open(run.folder)
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    assert_slots_of(run, opened, names, "rule")


def test_several_adapters(tmp_path):
    """Of several adapters, each in a folder of its name, the one that was trained is told."""
    peft = library("peft")
    model = adapted("LlamaForCausalLM", r=2, target_modules=["q_proj"])
    with quietly():
        model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["down_proj"]))
        model.set_adapter("second")
    run = trained(tmp_path, model)
    assert {"default", "second"} & {path.name for path in run.folder.iterdir()}
    opened = optstate.open(run.folder)
    names = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert len(opened.state) == len(names)
    for name, parameter in opened.state.items():
        assert name in names or set(parameter.facts.candidates) & set(names)


# --- why the momentum would be lost ---------------------------------------------------------------------------------


def codes(opened):
    return [clue.code for clue in opened.clues]


def test_save_only_model(tmp_path):
    """`save_only_model=True` is recognised: there is no optimizer, and resuming would not say so."""
    opened = optstate.open(trained(tmp_path, model_of("LlamaForCausalLM"), save_only_model=True).folder)
    assert (opened.state.optimizers, codes(opened)) == ({}, ["M118"])
    assert "save_only_model=True" in opened.clues[0].evidence


def test_resumed_without_optimizer(tmp_path):
    """After a silent resume from such a checkpoint the optimizer counts fewer steps than the Trainer."""
    first = trained(tmp_path, model_of("LlamaForCausalLM"), save_only_model=True)
    run = trained(tmp_path, model_of("LlamaForCausalLM"), steps=4, resume=str(first.folder))
    opened = optstate.open(run.folder)
    assert (opened.step, {parameter.find("step").value.item() for parameter in opened.state.values()}) == (4, {1.0})


def test_without_scheduler(copy):
    """Without its scheduler the Trainer does not load the optimizer either."""
    (copy / "scheduler.pt").unlink()
    opened = optstate.open(copy)
    assert len(opened.state) == 21
    assert any("scheduler.pt" in clue.evidence for clue in opened.clues if clue.code == "M118")


def test_optimizer_under_another_name(copy):
    """An `optimizer.bin` is read, and told to be where the Trainer does not look."""
    (copy / "optimizer.pt").rename(copy / "optimizer.bin")
    opened = optstate.open(copy)
    assert len(opened.state) == 21
    assert any("optimizer.bin" in clue.evidence for clue in opened.clues if clue.code == "M118")


def test_unfinished(copy):
    """The mark of a save that did not finish is read, which the Trainer itself does not do."""
    (copy / "checkpoint-is-incomplete.txt").touch()
    assert "M522" in codes(optstate.open(copy))


def test_deleted(copy, llama):
    """Whichever file is deleted, the rest opens, and nothing is silently clean that lacks the optimizer or the weights."""
    for name in sorted(path.name for path in llama.folder.iterdir()):
        (copy / name).unlink()
        if name == "trainer_state.json":
            shutil.copy(llama.folder / name, copy)
            continue
        opened = optstate.open(copy)
        if name == "optimizer.pt":
            assert (opened.state.optimizers, codes(opened)) == ({}, ["M118"])
        elif name == "model.safetensors":
            assert {parameter.facts.certainty for parameter in opened.state.values()} == {"position"}
        else:
            assert len(opened.state) == 21
        shutil.copy(llama.folder / name, copy)


def test_truncated(copy, llama):
    """A file that is cut short is named with its reason; the others are read."""
    for name in sorted(
        path.name for path in llama.folder.iterdir() if path.suffix in (".pt", ".pth", ".bin", ".safetensors")
    ):
        whole = (llama.folder / name).read_bytes()
        for length in (0, 1, 30, len(whole) // 2, len(whole) - 1):
            (copy / name).write_bytes(whole[:length])
            opened = optstate.open(copy)
            assert any(line.startswith(name) for line in opened.unread), (name, length)
            if name != "optimizer.pt":
                assert len(opened.state) == 21
            else:
                assert "M118" not in codes(opened)
        (copy / name).write_bytes(whole)
    assert optstate.open(copy).unread == ()


def test_stray_files(copy):
    """A file that the Trainer does not write is listed, not skipped."""
    torch.save({"a": 1}, copy / "ema.pt")
    (copy / "other").mkdir()
    assert [line.partition(":")[0] for line in optstate.open(copy).unread] == ["ema.pt", "other"]


def test_model_of_a_hub(tmp_path, llama):
    """A published model has no optimizer, and it is said why."""
    with quietly():
        llama.model.save_pretrained(tmp_path)
    opened = optstate.open(tmp_path)
    assert (len(opened.weights), codes(opened)) == (21, ["M103"])


def test_without_torch(llama):
    """Neither torch nor transformers is needed, and nothing of what a file names is imported."""
    program = (
        "import sys; sys.modules.update(torch=None, transformers=None, safetensors=None); import optstate; "
        f"state = optstate.open({str(llama.folder)!r}).state; "
        "print(len(state), float(abs(state['lm_head.weight'].momentum.array()).sum()) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "21 True\n"), done.stderr


def test_deepspeed_within(copy, llama):
    """What DeepSpeed wrote into the folder is read as its own layout; it needs no scheduler.pt (layout_from_source)."""
    for name in ("optimizer.pt", "scheduler.pt", "model.safetensors"):
        (copy / name).unlink()
    forge(copy)
    opened = optstate.open(copy)
    assert (opened.format, opened.step, opened.unread, codes(opened)) == ("Hugging Face Trainer", 3, (), [])
    assert {name: parameter.facts.certainty for name, parameter in opened.state.items()} == dict.fromkeys("abc", "file")
    shutil.rmtree(copy / "global_step7")
    assert optstate.open(copy).state.optimizers == {}


def test_fsdp_within(copy, llama):
    """What FSDP wrote into the folder has names, full or in DCP folders (layout_from_source)."""
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    weights, state = get_state_dict(llama.model, llama.optimizer)
    for name in ("optimizer.pt", "model.safetensors"):
        (copy / name).unlink()
    torch.save(weights, copy / "pytorch_model_fsdp.bin")
    torch.save(state, copy / "optimizer.bin")
    opened = optstate.open(copy)
    assert_is(opened, llama.optimizer, llama.model, certainty="file")
    assert codes(opened) == []
    for name in ("optimizer.bin", "pytorch_model_fsdp.bin"):
        (copy / name).unlink()
    with quietly():
        save({"model": weights}, checkpoint_id=str(copy / "pytorch_model_fsdp_0"))
        save({"optimizer": state}, checkpoint_id=str(copy / "optimizer_0"))
    opened = optstate.open(copy)
    assert_is(opened, llama.optimizer, llama.model, certainty="file")
    assert (codes(opened), opened.unread) == ([], ())


# --- the table of orders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_order_of_a_model(name):
    """The order that the table gives is the one in which the model has its parameters."""
    model = model_of(name)
    names = as_saved(model, [name for name, _ in model.named_parameters()])
    assert in_model_order(sorted(names), model.config.model_type, "5.0") == names


def test_order_of_a_version():
    """Where transformers 5 lays a model out differently, the version that wrote the file counts; unstated, neither does."""
    inside = (
        "attention.attention.query",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
        "layernorm_before",
        "layernorm_after",
    )
    names = [f"vit.encoder.layer.0.{part}.weight" for part in inside]
    older, newer = in_model_order(names, "vit", "4.57.3"), in_model_order(names, "vit", "5.23.0")
    assert older == names
    assert newer == [names[number] for number in (0, 1, 4, 5, 2, 3)]
    assert in_model_order(names, "vit") is None


def test_order_of_nothing_known():
    """A module that no model of its type has takes the order away, and so does one that is a parameter as well."""
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    assert in_model_order(names, "llama", "5.0") == names
    assert in_model_order([*names, "model.other.weight"], "llama", "5.0") is None
    assert in_model_order([*names, "model.norm"], "llama", "5.0") is None
    assert in_model_order(names, "nothing", "5.0") is None
    assert in_model_order(["a" + ".a" * 100], None) is None


def test_order_of_numbers():
    """Numbers count as numbers; a weight stands before its bias."""
    names = [f"{number}.{leaf}" for number in range(12) for leaf in ("weight", "bias")]
    assert in_model_order(sorted(names)) == names
