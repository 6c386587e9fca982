"""M1xx: state that is missing, or that is rightly not there."""

from __future__ import annotations

from optstate.doctor.catalogue.code import Code

CODES = (
    Code(
        code="M101",
        name="never-saved",
        severity="error",
        title="the checkpoint has an optimizer, and no state for any of its parameters",
        shown_by=("file", "live"),
        torch="silent",
        cause="`optimizer.state_dict()` was taken before the first step, or from a fresh optimizer instead of the one "
        "that trains. torch creates state in the first step, so until then there is nothing to save.",
        effect="Loading it succeeds and every moment starts from zero: about 1/(1-β1) updates have the wrong direction "
        "and about 1/(1-β2), usually 1000, the wrong size. The first loss after the resume is identical all the same.",
        fix="Save the optimizer that trains, after a step:\n"
        '    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)\n'
        "Of this run, look for an earlier checkpoint that still has state.",
        threads=("huggingface/transformers#33336", "KempnerInstitute/KempnerForge#115", "pytorch/pytorch#35047"),
    ),
    Code(
        code="M102",
        name="empty-state-accepted",
        severity="error",
        title="loading this checkpoint would replace the optimizer's state by nothing",
        shown_by=("live", "file and live"),
        torch="silent",
        cause="`load_state_dict` replaces the whole state by that of the checkpoint, and an empty one is as good to it "
        "as any.",
        effect="The momentum that the running optimizer has is dropped, without a word; training goes on as after a "
        "cold start.",
        fix="Refuse a checkpoint without state, unless a cold start is what you want:\n"
        '    assert checkpoint["optimizer"]["state"], "no optimizer state in it"\n'
        "`optstate.restore` refuses it by itself.",
        threads=("huggingface/transformers#33336", "r9y9/wavenet_vocoder#132"),
    ),
    Code(
        code="M103",
        name="optimizer-stripped",
        severity="error",
        title="the optimizer was left out of the checkpoint",
        shown_by=("file", "two files"),
        torch="raises",
        cause="Frameworks save weights alone, or drop the optimizer from their best, final and published files to make "
        "them smaller; converting and uploading does the same.",
        effect="Nothing here can restore a momentum. Training resumed from it starts every moment from zero, or fails "
        "where the program expects an optimizer.",
        fix="Resume from a file that the run saved for resuming (`last`, the newest numbered step), and not from the "
        "best, final or published one.",
        threads=("ultralytics/ultralytics#834", "ultralytics/ultralytics#5980", "open-mmlab/mmengine#1409"),
    ),
    Code(
        code="M104",
        name="frozen-dropped",
        severity="error",
        title="parameters that had state have none any more, while others kept theirs",
        shown_by=("two files", "file and live"),
        torch="silent",
        cause="torch's distributed state dicts skip parameters that are frozen while they are saved or loaded, and some "
        "savers write only what is trainable at that moment.",
        effect="When these parameters are trained again they start cold beside warm neighbours; with Adam their first "
        "updates are as large as at the start of the run.",
        fix="Unfreeze before saving and loading, and freeze again afterwards; or restore by name, where a frozen "
        "parameter keeps its state:\n"
        "    optstate.restore(path, model=model, optimizer=optimizer)",
        threads=("pytorch/pytorch#192202", "Lightning-AI/pytorch-lightning#6891", "volcengine/verl#7283"),
    ),
    Code(
        code="M106",
        name="parameter-replaced",
        severity="error",
        title="the optimizer updates a tensor that is no longer in the model",
        shown_by=("live",),
        torch="silent",
        cause="A layer was replaced, or weights were loaded with `assign=True`, after the optimizer had been built. The "
        "optimizer still holds the old tensor.",
        effect="The new parameter never changes, and its state in the optimizer is that of a dead tensor.",
        fix="Build the optimizer after the model is complete, or put the new tensor into its group and move the state:\n"
        "    optimizer.state[new] = optimizer.state.pop(old)",
        threads=("pytorch/pytorch#42428", "nerfstudio-project/gsplat#252", "huggingface/accelerate#4141"),
    ),
    Code(
        code="M109",
        name="no-slot-expected",
        severity="info",
        title="this configuration keeps no momentum, so none is missing",
        shown_by=("file", "live"),
        torch="silent",
        cause="The coefficient is zero (`SGD(momentum=0)`, `RMSprop(momentum=0)`), and then the optimizer creates no "
        "buffer.",
        effect="None: there is nothing to lose.",
        fix="Nothing to do. Give the param group a coefficient if you want momentum.",
        threads=("pytorch/pytorch#31793",),
    ),
    Code(
        code="M110",
        name="never-had-gradient",
        severity="info",
        title="parameters that never received a gradient have no state",
        shown_by=("file", "live"),
        torch="silent",
        cause="An optimizer creates a parameter's state in the first step in which it has a gradient. These are frozen, "
        "or the loss does not depend on them.",
        effect="None while they stay so. Once they are trained they start fresh, which is right.",
        fix="Nothing to do if they are frozen or unused on purpose. If not, look for the branch that the loss does not "
        "reach: `[n for n, p in model.named_parameters() if p.grad is None]` after `backward()`.",
        threads=("volcengine/verl#7283", "PrimeIntellect-ai/prime-rl#3399"),
    ),
    Code(
        code="M111",
        name="not-stepped-yet",
        severity="info",
        title="the optimizer has not stepped yet, so there is no state",
        shown_by=("file", "live"),
        torch="silent",
        cause="torch's optimizers create their state in the first step.",
        effect="None: a fresh optimizer has nothing to restore.",
        fix="Nothing to do. If a checkpoint should have been loaded before, it was not.",
        threads=("pytorch/pytorch#14467",),
    ),
    Code(
        code="M114",
        name="companion-missing",
        severity="error",
        title="a parameter has some of its slots and lacks others that belong to them",
        shown_by=("file", "two files", "live"),
        torch="late",
        cause="An entry was edited or pruned in part, or a tool kept only the slots that it knows.",
        effect="The next step raises a bare `KeyError` with the slot's key and no parameter's name; where it does not, "
        "the remaining slots are used with a wrong bias correction.",
        fix="Take the missing slots from another checkpoint of the same step, or drop the parameter's entry whole, so "
        "that it starts fresh and coherent.",
        threads=("pytorch/pytorch#7499",),
    ),
    Code(
        code="M115",
        name="slot-absent-for-flag",
        severity="error",
        title="a flag is on whose slot was never created",
        shown_by=("file", "live"),
        torch="late",
        cause="`amsgrad`, `centered` or a momentum was switched on after the state had been created; optimizers create "
        "slots only together with a parameter's first state.",
        effect="The next step raises a bare `KeyError`: `max_exp_avg_sq`, `grad_avg` or `momentum_buffer`.",
        fix="Switch the flag off again, or create the slot with its start value, such as\n"
        '    state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()   # for amsgrad\n'
        '    state["momentum_buffer"] = torch.zeros_like(p)          # for RMSprop with momentum',
        threads=("pytorch/pytorch#68733",),
    ),
    Code(
        code="M116",
        name="fused-sgd-mixed",
        severity="error",
        title="fused SGD has momentum for some parameters of a group and not for others",
        shown_by=("file", "live"),
        torch="late",
        cause="The fused kernel wants every buffer of a group or none. A parameter was unfrozen late, or its buffer was "
        "deleted to reset it.",
        effect="The next step raises a `TypeError` about a list of tensors that contains None.",
        fix="Give the missing parameters a buffer of zeros, or switch to `foreach` for a step. With dampening above 0 a "
        "buffer of zeros is not the same as none: the first gradient enters it damped.",
    ),
    Code(
        code="M117",
        name="not-in-optimizer",
        severity="error",
        title="trainable parameters are in no group of the optimizer",
        shown_by=("live",),
        torch="silent",
        cause="The groups were put together by hand or by pattern and missed some, or the parameters came later.",
        effect="They keep the value that they have; nothing says that they do not train.",
        fix='Add them, or freeze them to say that it is meant:\n    optimizer.add_param_group({"params": missing})',
        threads=("Lightning-AI/pytorch-lightning#21901",),
    ),
    Code(
        code="M118",
        name="optimizer-file-absent",
        severity="error",
        title="the folder lacks the file that its writer keeps the optimizer in",
        shown_by=("file",),
        torch="silent",
        cause="The checkpoint was saved with weights only (`save_only_model=True`), the file was deleted to save space, "
        "or it was not copied.",
        effect="The trainer skips the absent file, goes on at the saved step, and starts every moment from zero.",
        fix="Copy the optimizer's file from where the run wrote it, or resume from an earlier folder that has it.",
        threads=("huggingface/transformers#27751", "huggingface/transformers#33336"),
    ),
    Code(
        code="M119",
        name="state-not-defaultdict",
        severity="error",
        title="`optimizer.state` was replaced by a plain dict",
        shown_by=("live",),
        torch="late",
        cause="A reset found on the web: `optimizer.state = {}`. torch's optimizers rely on a dict that creates entries "
        "when it is asked.",
        effect="The next step raises a `KeyError` that prints a whole tensor.",
        fix="Clear the dict instead of replacing it:\n    optimizer.state.clear()",
        threads=("pytorch/pytorch#37410",),
    ),
    Code(
        code="M120",
        name="integer-lookup",
        severity="error",
        title="`optimizer.state` was asked by number, and now has an empty entry of that number",
        shown_by=("live",),
        torch="silent",
        cause="The numbers of a state dict were used on the live optimizer, whose keys are the parameters themselves. A "
        "`defaultdict` answers any key and keeps it.",
        effect="The program read nothing where it meant to read momentum; in the next save the empty entry hides the "
        "state of the parameter that really has this number.",
        fix="Delete the numbers, and address state by tensor or by name:\n"
        "    for key in [k for k in optimizer.state if isinstance(k, int)]: del optimizer.state[key]\n"
        '    optstate.attach(optimizer, model)["encoder.0.weight"].momentum',
        threads=("pytorch/pytorch#31793", "joeyan/gaussian_splatting#32"),
    ),
)
