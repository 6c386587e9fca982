"""M4xx: hyperparameters, flags, and the schedulers that set them."""

from __future__ import annotations

from optstate.doctor.catalogue.code import Code

CODES = (
    Code(
        code="M401",
        name="hyper-overwritten",
        severity="warning",
        title="hyperparameters change, and no scheduler explains it",
        shown_by=("two files", "live", "file and live"),
        torch="silent",
        cause="`load_state_dict` replaces the groups whole: learning rate, weight decay, betas and all else are those "
        "of the checkpoint, whatever the program was started with.",
        effect="The value on your command line has no effect, and the log of the run shows the old one, if anything.",
        fix='Set yours after the load:\n    for group in optimizer.param_groups: group["lr"] = lr',
        threads=("pytorch/pytorch#156846", "pytorch/examples#816", "huggingface/transformers#9099"),
    ),
    Code(
        code="M402",
        name="flags-travel",
        severity="error",
        title="flags of the checkpoint replace those of the program",
        shown_by=("two files", "live", "file and live"),
        torch="silent",
        cause="`amsgrad`, `nesterov`, `maximize`, `capturable`, `foreach` and `fused` are entries of the groups, and a "
        "load takes them like any hyperparameter.",
        effect="Another algorithm runs than the one that was asked for, gradient ascent with `maximize`; `capturable` "
        "on the CPU raises at the next step.",
        fix="Put the program's flags back after the load:\n"
        "    for group in optimizer.param_groups: group.update(maximize=False, capturable=False, fused=None)",
        threads=("pytorch/pytorch#80809", "FoundationVision/VAR#127"),
    ),
    Code(
        code="M403",
        name="decoupled-leak",
        severity="error",
        title="Adam and AdamW change into one another",
        shown_by=("two files", "live", "file and live"),
        torch="silent",
        cause="Since torch 2.7 the two differ in the group's flag `decoupled_weight_decay` alone, and the flag is loaded.",
        effect="Weight decay is applied in the other way: through the gradient and the moments, or beside them.",
        fix='Set the flag after the load: `group["decoupled_weight_decay"] = isinstance(optimizer, torch.optim.AdamW)`.',
        threads=("pytorch/pytorch#146157",),
    ),
    Code(
        code="M404",
        name="fused-lost",
        severity="error",
        title="the load switches `fused` off behind the optimizer's back",
        shown_by=("live", "file and live"),
        torch="late",
        cause="The optimizer was built with `fused=True` and says so to the gradient scaler; the groups of the "
        "checkpoint say None.",
        effect="`GradScaler.step` raises an assertion, or passes gradients that nobody unscales.",
        fix='Keep the live flag: `for group in optimizer.param_groups: group["fused"] = True`.',
    ),
    Code(
        code="M405",
        name="initial-lr-missing",
        severity="error",
        title="a scheduler was saved, and the groups have no `initial_lr`",
        shown_by=("file", "live", "file and live"),
        torch="raises",
        cause="A scheduler writes `initial_lr` into the groups that it drives. These groups were saved before it was "
        "built, or by another optimizer than the one it drives.",
        effect="A scheduler that is built to go on (`last_epoch` above -1) raises `KeyError`; one that is loaded goes on "
        "with its own values.",
        fix="Add it before the scheduler is built:\n"
        '    for group in optimizer.param_groups: group.setdefault("initial_lr", base_lr)',
        threads=("pytorch/pytorch#160626", "pytorch/pytorch#119168", "mozilla/TTS#57"),
    ),
    Code(
        code="M406",
        name="load-order",
        severity="error",
        title="the learning rate is not the one that the scheduler set last",
        shown_by=("file", "live"),
        torch="silent",
        cause="A scheduler's constructor rewrites the groups. Built after the optimizer's state was loaded, it puts its "
        "start values over the loaded ones: 8 of torch's 15 schedulers then go on from a wrong value.",
        effect="Learning rate, and momentum with OneCycle, are wrong for a step or for the rest of the run.",
        fix="Build the scheduler first, then load the optimizer, then the scheduler:\n"
        "    scheduler = make_scheduler(optimizer)\n"
        '    optimizer.load_state_dict(checkpoint["optimizer"])\n'
        '    scheduler.load_state_dict(checkpoint["scheduler"])',
        threads=("pytorch/pytorch#119168", "Lightning-AI/pytorch-lightning#15462", "ultralytics/yolov5#292"),
    ),
    Code(
        code="M407",
        name="dead-optimizer",
        severity="error",
        title="the scheduler drives another optimizer than the one that trains",
        shown_by=("live",),
        torch="warns",
        cause="The optimizer was built anew and the old scheduler was kept. torch warns about an order of calls, which "
        "leads nobody to it.",
        effect="The learning rate of the optimizer that trains never changes.",
        fix="Build the scheduler on the new optimizer, and load its state.",
    ),
    Code(
        code="M408",
        name="late-group",
        severity="error",
        title="a group was added after the scheduler, which does not know it",
        shown_by=("file", "live"),
        torch="silent",
        cause="A scheduler keeps one start value per group, counted when it is built. `add_param_group` does not tell it.",
        effect="The new group keeps its learning rate for ever; some schedulers raise `ValueError` instead.",
        fix="Build the scheduler after the last group, or give it the new one:\n"
        '    group["initial_lr"] = group["lr"]; scheduler.base_lrs.append(group["lr"])',
        threads=("pytorch/pytorch#104361", "Lightning-AI/pytorch-lightning#6891", "huggingface/transformers#20029"),
    ),
    Code(
        code="M409",
        name="momentum-cycled",
        severity="warning",
        title="a scheduler owns the momentum coefficient",
        shown_by=("live",),
        torch="silent",
        cause="`OneCycleLR` and `CyclicLR` set `momentum` or `betas[0]` in every step, unless `cycle_momentum=False`.",
        effect="A coefficient set by hand or by another schedule is overwritten with the next scheduler step.",
        fix="Give the range to the scheduler (`base_momentum`, `max_momentum`), or pass `cycle_momentum=False`.",
        threads=("pytorch/pytorch#19003", "pytorch/pytorch#73910"),
    ),
    Code(
        code="M410",
        name="cycle-keys-lost",
        severity="error",
        title="a cyclic scheduler was saved, and the groups lack the keys that it keeps there",
        shown_by=("file", "live", "file and live"),
        torch="late",
        cause="`OneCycleLR` and `CyclicLR` keep their bounds in the groups (`max_lr`, `min_lr`, `base_momentum`). A load "
        "of groups from before the scheduler removes them.",
        effect="The next step of the scheduler raises `KeyError`, or cycles between bounds of another run.",
        fix="Keep the scheduler's keys over the load:\n"
        '    kept = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]\n'
        "    optimizer.load_state_dict(saved)\n"
        "    for g, k in zip(optimizer.param_groups, kept): g.update({x: k[x] for x in k.keys() - g.keys()})",
    ),
    Code(
        code="M411",
        name="group-key-missing",
        severity="error",
        title="groups lack a hyperparameter that this optimizer reads",
        shown_by=("file", "live", "file and live"),
        torch="late",
        cause="An older version, or another tool, wrote the groups; most optimizers fill nothing in.",
        effect="The next step raises `KeyError` with the hyperparameter's name.",
        fix="Fill it from the program's own defaults after the load:\n"
        "    for group in optimizer.param_groups:\n"
        "        for key, value in optimizer.defaults.items(): group.setdefault(key, value)",
        threads=("pytorch/pytorch#146157", "pytorch/pytorch#23070", "juntang-zhuang/Adabelief-Optimizer#7"),
    ),
    Code(
        code="M412",
        name="numpy-scalar",
        severity="error",
        title="the file holds numpy numbers, which torch refuses to load",
        shown_by=("file", "live"),
        torch="raises",
        cause="A learning rate came out of numpy (`np.float64(0.1)`) and was saved as it is. `torch.load` has allowed "
        "only its own types by default since 2.6.",
        effect="`torch.load` raises `UnpicklingError`; with `weights_only=False` it loads, and executes whatever else is "
        "in the file.",
        fix="Convert before saving: `lr=float(lr)`. To read this file with torch:\n"
        "    with torch.serialization.safe_globals([numpy.dtype, numpy._core.multiarray.scalar, "
        "type(numpy.dtype(float))]): torch.load(path)",
        threads=("huggingface/accelerate#3539", "rwth-i6/returnn#1710"),
    ),
    Code(
        code="M413",
        name="momentum-jump",
        severity="warning",
        title="the momentum coefficient jumped while the buffer was kept",
        shown_by=("two files", "live"),
        torch="silent",
        cause="SGD's buffer is a sum that tends to 1/(1-μ) times the gradient. A new μ expects a buffer of another size.",
        effect="Until the sum has settled the updates are (1-μ new)/(1-μ old) times as large as they should be: five "
        "times when 0.9 becomes 0.5.",
        fix="Scale the buffers when the coefficient changes: `buffer.mul_((1 - old) / (1 - new))`.",
    ),
    Code(
        code="M414",
        name="shared-group-dicts",
        severity="warning",
        title="two optimizers were built from the same group dicts",
        shown_by=("live",),
        torch="silent",
        cause="An optimizer's constructor fills in its defaults in the dicts that it is given.",
        effect="The second optimizer takes the first one's defaults for explicit settings.",
        fix="Give each optimizer its own dicts: `[dict(group) for group in groups]`.",
        threads=("pytorch/pytorch#51794",),
    ),
    Code(
        code="M415",
        name="group-value-ignored",
        severity="warning",
        title="a value given for a group was not used",
        shown_by=("live",),
        torch="silent",
        cause="Adagrad fills its sums from the constructor's `initial_accumulator_value`, never from that of a group.",
        effect="The group shows a value that its slots do not have.",
        fix='Fill the slot yourself: `optimizer.state[p]["sum"].fill_(group["initial_accumulator_value"])`.',
    ),
    Code(
        code="M416",
        name="tensor-hyper-replaced",
        severity="warning",
        title="a hyperparameter that was a tensor has become a number",
        shown_by=("live",),
        torch="silent",
        cause="Some schedulers assign a number where the program keeps a tensor, so that compiled code can see it change.",
        effect="A compiled optimizer is compiled again in every step, or goes on with the value of compile time.",
        fix='Write into the tensor: `group["lr"].fill_(value)`.',
    ),
    Code(
        code="M417",
        name="step-miscounted",
        severity="warning",
        title="hooks count steps that did not happen, or count them twice",
        shown_by=("live",),
        torch="silent",
        cause="With a gradient scaler a fused optimizer's step is called and skipped inside; subclasses that call "
        "`super().step()` run hooks twice.",
        effect="Schedules and logs that count hook calls run ahead of the optimizer.",
        fix='Count by the optimizer\'s own `state[p]["step"]`.',
    ),
    Code(
        code="M418",
        name="lr-one-step-late",
        severity="info",
        title="ASGD applies a new learning rate one step late",
        shown_by=("file", "live"),
        torch="silent",
        cause="Its update uses `eta`, which was computed from the learning rate at the end of the step before.",
        effect="A change of `lr` is seen one step later than with other optimizers.",
        fix='Nothing to do, or set `state["eta"]` together with `lr`.',
    ),
    Code(
        code="M419",
        name="second-copy",
        severity="warning",
        title="an adaptive value lives in two places, and only one is saved",
        shown_by=("library",),
        torch="silent",
        cause="Some optimizers keep a group's value and a global twin of it, such as an estimated step size.",
        effect="After a resume the two differ, and which one wins depends on the order of calls.",
        fix="Save and restore what the optimizer documents as its state, and compare both after the load.",
        threads=("LoganBooker/prodigy-plus-schedule-free#28", "bitsandbytes-foundation/bitsandbytes#1382"),
    ),
    Code(
        code="M420",
        name="override-undone",
        severity="warning",
        title="an override of hyperparameters is undone by the next automatic resume",
        shown_by=("library",),
        torch="silent",
        cause="The list of keys to ignore on load belongs to the first start; a trainer that resumes by itself loads "
        "its own newest checkpoint without it.",
        effect="After a restart the old values are back.",
        fix="Keep the override in the program, after every load, and not in the options of one start.",
        threads=("mosaicml/composer#3154",),
    ),
)
