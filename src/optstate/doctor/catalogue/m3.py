"""M3xx: values that no healthy run has, or that mean something else than they seem to."""

from __future__ import annotations

from optstate.doctor.catalogue.code import Code

CODES = (
    Code(
        code="M301",
        name="non-finite",
        severity="error",
        title="values are NaN or infinite",
        shown_by=("file", "live"),
        torch="silent",
        cause="One gradient with NaN or infinity reached the optimizer: an overflow in half precision, a division by "
        "zero, a loss that exploded.",
        effect="An average that has once seen NaN stays NaN: these elements poison their weights in every further step.",
        fix="Resume from the last checkpoint without them and look for the batch that did it; "
        "`torch.nn.utils.clip_grad_norm_(..., error_if_nonfinite=True)` stops before the step. If there is none, reset "
        "the parameters concerned, all slots of each together.",
        threads=("NVIDIA/apex#180",),
    ),
    Code(
        code="M303",
        name="quantised-state",
        severity="info",
        title="state is kept in a quantised form",
        shown_by=("file", "live"),
        torch="silent",
        cause="An 8-bit or 4-bit optimizer stores codes in blocks, each block with a scale of its own.",
        effect="The codes cannot be compared, averaged or checked element by element, so the values were not judged.",
        fix="Nothing to do. To look at values, dequantise them with the library that wrote them.",
        threads=("pytorch/ao#1044",),
    ),
    Code(
        code="M304",
        name="reset-without-companions",
        severity="error",
        title="the second moment is zero while the step count is not",
        shown_by=("file", "live"),
        torch="silent",
        cause="The second moment was reset or lost, and `step` was kept. Bias correction then takes a cold average for a "
        "warm one.",
        effect="The next update divides by almost nothing: up to 1/√(1-β2), about 30 times, the usual size, in every "
        "element.",
        fix="Reset a parameter's state as a whole, so that it starts again from step 0:\n"
        "    optimizer.state.pop(p, None)",
        threads=("pytorch/pytorch#37410", "Guitaricet/relora#10", "timoklein/redo#6"),
    ),
    Code(
        code="M305",
        name="centred-variance",
        severity="error",
        title="the mean of squares is below the square of the mean",
        shown_by=("file", "live"),
        torch="silent",
        cause="Of centred RMSprop's two averages only `square_avg` was reset. It subtracts the square of `grad_avg` from "
        "it and takes the root.",
        effect="The root of a negative number: NaN in the weights with the next step.",
        fix="Reset `grad_avg` together with `square_avg`, or the parameter's state as a whole.",
    ),
    Code(
        code="M306",
        name="inf-norm-zero",
        severity="error",
        title="Adamax's norm is zero where its momentum is not",
        shown_by=("file", "live"),
        torch="silent",
        cause="`exp_inf` was reset or lost while `exp_avg` was kept.",
        effect="The next update divides by eps alone: with the default of 1e-8, a step a hundred million times too long.",
        fix="Reset `exp_avg` and `step` together with `exp_inf`, or the parameter's state as a whole.",
    ),
    Code(
        code="M307",
        name="step-size-zero",
        severity="error",
        title="Rprop's step sizes are zero",
        shown_by=("file", "live"),
        torch="silent",
        cause="`step_size` was reset to zero like a moment. It is a learning rate: a fresh one holds `lr`.",
        effect="It is raised to the smallest allowed size, usually 1e-6, and takes a hundred steps to come back: the "
        "parameters stand still.",
        fix='Fill it with the learning rate: `state["step_size"].fill_(group["lr"])`.',
    ),
    Code(
        code="M308",
        name="scalar-zeroed",
        severity="error",
        title="a factor is zero whose fresh value is not",
        shown_by=("file", "live"),
        torch="silent",
        cause="A reset filled every slot with zeros. ASGD's `eta` starts at `lr` and its `mu` at 1, NAdam's `mu_product` "
        "at 1.",
        effect="With `eta` zero the parameter does not move at all; with `mu_product` zero NAdam leaves out its bias "
        "correction.",
        fix="Put the fresh values back: `eta = lr`, `mu = 1`, `mu_product = 1` together with `step = 0`.",
        threads=("pytorch/pytorch#37410",),
    ),
    Code(
        code="M309",
        name="uninitialised-buffer",
        severity="error",
        title="magnitudes that no gradient produces",
        shown_by=("file", "live"),
        torch="silent",
        cause="Fused SGD whose first step overflowed under a gradient scaler keeps buffers of memory that nobody wrote "
        "to; gradients that were never unscaled, or a run that diverges, come near it.",
        effect="The next step moves the weights by whatever was in that memory.",
        fix="Delete the buffers of these parameters, so that they are made anew: `optimizer.state[p].clear()`, for all "
        "parameters of the group where the optimizer is fused.",
        threads=("LibreYOLO/libreyolo#771",),
    ),
    Code(
        code="M310",
        name="underflowed-second-moment",
        severity="error",
        title="the second moment is zero in places where the first is not",
        shown_by=("file", "live"),
        torch="silent",
        cause="It was stored in float16, whose smallest number is 6e-8: squares of gradients below 2e-4 become zero. "
        "bfloat16 keeps the range, and three digits.",
        effect="These elements are divided by eps alone: the loss jumps by orders of magnitude on resume.",
        fix="Save second moments in float32. Of this run, resume from a file that holds them so, or reset the "
        "parameters concerned.",
        threads=("ultralytics/ultralytics#24085", "ultralytics/ultralytics#17282"),
    ),
    Code(
        code="M311",
        name="step-disagrees",
        severity="warning",
        title="step counts disagree: among parameters, with the trainer's, or with an earlier checkpoint",
        shown_by=("file", "two files", "live"),
        torch="silent",
        cause="The count of some parameters was lost or restarted, they joined late or rarely have a gradient (experts), "
        "or the whole optimizer was started afresh while the trainer's count went on.",
        effect="Bias correction is that of the count: a warm moment with a count near zero makes the next update up to "
        "twice as large; a cold one beside a high count makes it too small.",
        fix="If these parameters joined late or are used rarely, this is right. If not, resume from a checkpoint in "
        "which the counts agree.",
        threads=("NVIDIA-NeMo/Megatron-Bridge#5680", "huggingface/transformers#33336"),
    ),
    Code(
        code="M312",
        name="step-saturated",
        severity="warning",
        title="a float32 step count has reached 16,777,216 and cannot go on",
        shown_by=("file", "live"),
        torch="silent",
        cause="Above 2^24 float32 does not hold every integer; adding one changes nothing.",
        effect="None for Adam, whose bias correction ended long before. What reads the count as a number of steps is "
        "wrong from here on.",
        fix="Nothing to do for Adam. Count steps elsewhere.",
    ),
    Code(
        code="M313",
        name="stale-buffer",
        severity="warning",
        title="momentum is zero, and a buffer of an earlier time is still there",
        shown_by=("file", "live"),
        torch="silent",
        cause="The coefficient was set to zero; the optimizer then neither updates nor deletes the buffer.",
        effect="None now. When momentum is switched on again, the old direction comes back with it.",
        fix='Delete it where momentum stays off: `optimizer.state[p].pop("momentum_buffer", None)`.',
    ),
    Code(
        code="M314",
        name="frozen-but-moving",
        severity="error",
        title="frozen parameters still have gradients, and the optimizer moves them",
        shown_by=("live",),
        torch="silent",
        cause="They were frozen and their gradients set to zero instead of None. The optimizer skips None only.",
        effect="Momentum and weight decay go on changing parameters that are meant to stand still.",
        fix="Set the gradients to None: `optimizer.zero_grad()`, whose default does so, or `p.grad = None`.",
        threads=("Lightning-AI/pytorch-lightning#6891", "pytorch/pytorch#62475"),
    ),
    Code(
        code="M315",
        name="zero-is-not-delete",
        severity="warning",
        title="a buffer of zeros is not the same as none",
        shown_by=("file", "live"),
        torch="silent",
        cause="SGD lets the first gradient into an absent buffer undamped, into one of zeros damped.",
        effect="With dampening above zero, the first update after a reset to zero is smaller than after a deletion.",
        fix='Reset by deletion: `optimizer.state[p].pop("momentum_buffer", None)`.',
    ),
    Code(
        code="M316",
        name="stale-fp32-masters",
        severity="error",
        title="the float32 copies of the weights are not those of the weights",
        shown_by=("file", "live"),
        torch="silent",
        cause="Weights were restored or edited by writing to the parameters, while the optimizer keeps float32 copies "
        "of its own and updates those.",
        effect="The first step writes the old copies back: the restored weights, often an adapter, are gone.",
        fix="Copy the weights into the float32 copies before the first step.",
        threads=("radixark/miles#2572",),
    ),
    Code(
        code="M317",
        name="negative-second-moment",
        severity="error",
        title="a second moment has negative values",
        shown_by=("file", "live"),
        torch="silent",
        cause="An average of squares cannot be negative: an edit, a subtraction, a merge or a wrong cast made it so.",
        effect="The root of a negative number: NaN in the weights with the next step.",
        fix="Take it from an unedited checkpoint, or reset the parameters concerned as a whole.",
    ),
    Code(
        code="M318",
        name="weights-in-state",
        severity="info",
        title="a slot holds averaged weights and no moment",
        shown_by=("file", "live"),
        torch="silent",
        cause="ASGD's `ax` is an average of the weights, schedule-free optimizers keep such a copy too.",
        effect="None by itself. Scaled or reset like a momentum, the averaged model is destroyed.",
        fix="Nothing to do. Leave these slots out of edits of momentum, and treat them as weights when the model changes.",
    ),
    Code(
        code="M319",
        name="sign-flipped",
        severity="error",
        title="`maximize` changed while momentum was kept",
        shown_by=("two files",),
        torch="silent",
        cause="With `maximize` the buffers hold the negated gradient. The flag is part of the groups and is edited or "
        "loaded on its own.",
        effect="The old momentum pushes the wrong way until it is forgotten.",
        fix="Negate the first moments, or reset them, when the flag changes.",
    ),
    Code(
        code="M320",
        name="zero-first-moment",
        severity="warning",
        title="momentum is zero although the optimizer has stepped",
        shown_by=("file", "live"),
        torch="silent",
        cause="It was lost or reset while `step` was kept, or the parameter has had gradients of zero for long, as "
        "behind a dead unit or a frozen one whose gradient is zero and not None.",
        effect="Bias correction takes the zeros for a warm average: the first update has a tenth of its size (1-β1) "
        "and the direction of a single batch.",
        fix="Restore the momentum from an earlier checkpoint, or reset the parameter's state as a whole. If its "
        "gradient is really zero, nothing is missing.",
        threads=("pytorch/pytorch#37410", "NVIDIA-NeMo/RL#3544"),
    ),
)
