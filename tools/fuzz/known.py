"""Deviations that are decided and recorded. Each has its reason and is as narrow as possible.

docs/decisions/2026-11-23-sklearn.md, 2026-11-23-torch.md and the docstrings have the decisions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tools.fuzz.programs import Divergence


@dataclass(frozen=True)
class Known:
    """A deviation: line, place, kind and detail match their regular expressions.

    `before` matches the lines so far. After a deviation of values or after an error, the rest of
    the program tells nothing.
    """

    reason: str
    line: str = ""
    place: str = ""
    kind: str = ""
    detail: str = ""
    before: str = ""
    ends: bool = False  # the rest of the program tells nothing

    def matches(self, lines: Sequence[str], found: Divergence) -> bool:
        pairs = (
            (self.line, found.line),
            (self.place, found.place),
            (self.kind, found.kind),
            (self.detail, found.detail),
            (self.before, "\n".join(lines)),
        )
        return all(re.search(pattern, text) for pattern, text in pairs)


def reason(table: Sequence[Known], lines: Sequence[str], found: Divergence) -> tuple[str, bool]:
    """Return why the divergence is no fault ("" if it is one), and whether the rest tells
    nothing."""
    deviation = next((k for k in table if k.matches(lines, found)), None)
    if deviation is None:
        return "", False
    ends = deviation.ends or found.kind == "values" or "after an error" in found.kind
    return deviation.reason, ends


ESTIMATORS = (
    Known(
        'hasattr(MLPRegressor(solver="lbfgs"), "partial_fit") is False',
        line=r"partial_fit",
        detail=r"has no attribute 'partial_fit'|there True\nhere False",
        before=r"MLPRegressor\(",
    ),
    Known(
        "y of another width than the network's is an error",
        place="^error$",
        kind="there, ShapeError here",
        detail="here ShapeError.'y has .* but the network that goes on has",
    ),
    Known(
        "of two faults at once, what is wrong with coefs_ or intercepts_ is named first; or in other "
        "words",
        place="^error$",
        kind=r"^(?!NoneType)\w+ there, (Shape|Option|Dtype|Attribute)Error here$",
        detail=r"here \w+Error.'(coefs_|intercepts_)(\[| has \d+ entries)",
    ),
    Known(
        "of two faults at once, weights of zero are named before classes that no call has told",
        line="partial_fit",
        place="^error$",
        detail=r"there NotFittedError..This LabelBinarizer.*\nhere ValueError..Sample weights must",
    ),
    Known(
        "labels that a fit refuses leave what later calls need; scikit-learn has forgotten it",
        line=r"\.(partial_fit|predict\w*|score)\(",
        place="^error$",
        detail="there AttributeError..'LabelBinarizer' object has no attribute 'classes_'",
        before=r"fit\(",
    ),
    Known(
        "moments of another width are an error; scikit-learn broadcasts them where NumPy can",
        line="partial_fit",
        kind="NoneType there, ShapeError here|after an error, unchanged here",
        detail="(here|after) ShapeError..coefs_ were replaced and the optimizer's state",
        before=r"\ndel \w\.coefs_",
    ),
    Known(
        "y of another width than the network's is an error before anything is changed",
        kind="after an error, unchanged here",
        detail="after ShapeError.'y has .* but the network that goes on has",
    ),
    Known(
        "coefs_ and intercepts_ that no update fits are an error before anything is changed",
        kind="after an error, unchanged here",
        detail=r"after (Shape|Attribute|Option|Dtype)Error.'(coefs_|intercepts_)(\[| has \d+ entries)",
    ),
    Known(
        "an estimator that was given coefs_ in the place of a fit is an error before anything is "
        "changed",
        kind="after an error, unchanged here",
        detail=r"after AttributeError.*has no attribute '(intercepts_|n_layers_)'",
        before=r"\.coefs_ = ",
    ),
    Known(
        "a partial_fit that coefs_ of lists refuse has not counted its iterations",
        place=r"\.n_iter_$",
        kind="^not equal$",
        before=r"(?s)\.tolist\(\).*partial_fit\(",
        ends=True,
    ),
    Known(
        "the loss of float32 data with targets beyond float32 is infinite or NaN a step later",
        place="loss",
        detail=r"there array.(inf|nan)|beside loss_ \[array.(inf|nan)",  # or the lowest one differs
        before=r"1e\+?(39|200)",
        ends=True,
    ),
    Known(
        "the loss of float32 data is float32's where a fit diverges: infinite from 3.4e38 on, so "
        "that the lowest stays the infinity that it began with",
        line=r"fit\(.*float32",
        place=r"\.best_loss_\.type$",
        kind="after an error",
        detail=r"there 'float64'\nhere 'float'\nafter ValueError.'Solver produced non-finite",
    ),
    Known(
        "targets beyond float32 are scaled, so that the first loss of a fit that diverges is finite "
        "and the lowest; scikit-learn's is infinite, and its lowest what it began with",
        line=r"fit\(.*float32.*1e\+?(39|200)",
        place=r"\.best_loss_\.type$",
        kind="after an error",
        detail=r"there 'float'\nhere 'float64'\nafter ValueError.'Solver produced non-finite",
    ),
    Known(
        "the loss of float32 data is float32's where a fit diverges: infinite from 3.4e38 on",
        line=r"fit\(.*float32",
        place=r"\.(best_loss_|loss_|loss_curve_\[\d+\])$",
        detail=r"there array\(\d\.\d+e\+(3[89]|[4-9]\d|\d{3})\)\nhere array\((inf|nan)\)",
        ends=True,
    ),
    Known(
        "numbers that are text are refused before anything else is looked at",
        place="^error$",
        kind=r"[^N]\w+Error there, DtypeError here",
        detail=r"here DtypeError\('y has dtype <U",
    ),
    Known(
        "sizes that were set anew are an error of their own where a network goes on",
        place="^error$",
        kind=r"[^N]\w+Error there, ShapeError here",
        detail="here ShapeError.'hidden_layer_sizes=",
    ),
    Known(
        "where exp overflows in the Poisson loss, other parameters are NaN than scikit-learn's",
        kind="values, after an error",
        detail=r"after ValueError.'Solver produced non-finite",
        before="poisson",
    ),
    Known(
        "where exp overflows or falls to 0 in the Poisson loss, scikit-learn has NaN and ours a number "
        "or infinity",
        place=r"\.(loss_|best_loss_|loss_curve_\[\d+\]|best_loss_\.type)$",
        # no loss was below the initial inf; or no later one was below the best
        detail=r"there array.(nan|inf)|there 'float'|beside loss_ \[array\((nan|inf)\), array\((\d|inf)",
        before="poisson",
        ends=True,
    ),
    Known(
        "Poisson gradients of float32 data overflow as float32 does, which scikit-learn's do where "
        "y is float32 too",
        line=r"float32",
        place="^error$",
        kind="NoneType there, ValueError here",
        detail="here ValueError.'Solver produced non-finite",
        before="poisson",
    ),
    Known(
        "the Poisson loss of negative targets is NaN, and SciPy's line search goes by the last bits",
        line=r"fit\(",
        detail=r"beside loss_ \[array\(nan.*\), array\(nan",  # of either type
        before=r"(?s)lbfgs.*poisson|poisson.*lbfgs",
        ends=True,
    ),
    Known(
        "where float32's exp overflows in the Poisson loss, scikit-learn's L-BFGS ends with NaN; ours "
        "computes in float64 and goes on",
        line=r"fit\(.*float32",
        detail=r"beside loss_ \[array\(nan\), array\(\d",
        before=r"(?s)lbfgs.*poisson|poisson.*lbfgs",
        ends=True,
    ),
    Known(
        "where a fit diverges to infinity in one step, which parameters are infinite already goes by "
        "the order of a product's sums",
        line=r"fit\(.*1e\+?(39|200)",
        place=r"\.(coefs_|intercepts_)\[\d+\]$",
        kind="^values, after an error",
        detail=r"(?s)here array.*(inf|nan|e\+30\d).*after ValueError.'Solver produced non-finite.*"
        r"beside loss_ \[array\(inf\), array\(inf\)\]",
    ),
    Known(
        "a log loss of less than 1e-6 from float32 data is rounded with scikit-learn's probabilities, "
        "which are float32; ours comes from the logits and is that of the parameters",
        line=r"fit\(.*float32",
        place=r"\.(loss_|best_loss_)$",
        kind="^values$",
        detail=r"there array\((0\.\)|\d\.\d*e-(0[789]|\d\d))",
        before=r"MLPClassifier\(.*lbfgs",
        ends=True,
    ),
    Known(
        "weights of a batch that sum to zero are an error before the epoch's first update",
        kind="values, after an error",
        detail="after ZeroDivisionError..Weights sum to zero",
    ),
    Known(
        "coefs_ of several outputs for two classes are an error; scikit-learn predicts more rows",
        line=r"\.(predict\w*|score)\(",
        place="^error$",
        kind="NoneType there, ShapeError here",
        detail=r"here ShapeError.'coefs_\[.*since the classifier has one output unit",
    ),
    Known(
        "coefs_ may be any sequence, not only a list (another fault may be next)",
        place="^error$",
        kind=r"TypeError there, \w+ here",
        detail="there TypeError.*can only concatenate tuple",
        before=r"coefs_ = tuple",
    ),
    Known(
        "an entry of coefs_ may be a list where rows are predicted (another fault may be next)",
        line=r"\.(predict\w*|score)\(",
        place="^error$",
        kind=r"AttributeError there, \w+ here",
        detail="there AttributeError..'list' object has no attribute 'ndim'",
        before=r"coefs_\[0\] = .*tolist",
    ),
    Known(
        "a row of weight 0 does not count where its loss is infinite, which makes NaN of "
        "scikit-learn's sum",
        line=r"fit\(.*1e\+?\d{3}.*sample_weight=",
        place=r"\.(loss_|best_loss_|loss_curve_\[\d+\]|best_loss_\.type)$",
        detail=r"there array.nan|beside loss_ \[array\(nan\), array\(\d",
        ends=True,
    ),
    Known(
        "with beta_2 of 0 a step is divided by the last gradient alone: where the penalty's is all "
        "there is, and near 0, its rounding is magnified",
        place=r"\.(coefs_|intercepts_)\[",
        kind="values",
        detail=r"off by \d(\.\d+)?e-(09|[1-9]\d) ",
        before=r"beta_2=0\.0",
    ),
    Known(
        "with beta_2 of 0 a step is divided by the last gradient alone, which in float32 is as soon 0 "
        "as next to it",
        line=r"fit\(.*float32",
        place=r"\.((coefs_|intercepts_)\[|(best_)?loss_$|loss_curve_\[)",
        kind="values",
        before=r"beta_2=0\.0",
    ),
    Known(
        "weights are divided by their sum first; scikit-learn multiplies float32 deltas by them, "
        "which makes 0 of the smallest",
        line=r"float32.*sample_weight=.*1e-200",
        place=r"\.(coefs_|intercepts_)\[|\.(best_loss_|loss_|loss_curve_\[\d+\])$",
        kind="values",
    ),
    Known(
        "weights are divided by their sum first; scikit-learn divides by 0 after the smallest have "
        "become 0 in float32",
        line=r"sample_weight=.*1e-200",
        place="^error$",
        kind="ValueError there, NoneType here",
        detail="there ValueError.'Solver produced non-finite",
        before="float32",
    ),
    Known(
        "weights are divided by their sum first: in a fit that diverges, other parameters are NaN",
        line=r"sample_weight=.*1e-200",
        place=r"\.(coefs_|intercepts_)\[",
        kind="values, after an error",
        detail="after ValueError.'Solver produced non-finite",
    ),
    Known(
        "moments beyond float32 go on in float64, in which other parameters of a fit that diverges "
        "are NaN",
        line=r"partial_fit\(.*float32",
        place=r"\.(coefs_|intercepts_)\[",
        kind="values, after an error",
        detail="after ValueError.'Solver produced non-finite",
        before=r"fit\(.*1e\+?(39|200) \*(?s:.*)partial_fit\(",
    ),
    Known(
        "squares of Poisson gradients beyond 1.8e19 are infinite in float32, which stops Adam; "
        "scikit-learn's gradients are float64 where y is",
        line=r"fit\(.*float32",
        place=r"\.(best_validation_score_|validation_scores_\[\d+\]|coefs_\[\d+\]|intercepts_\[\d+\])$",
        kind="^values$",
        detail=r"beside loss_ \[array\((nan|inf|\d\.\d+e\+(19|[2-9]\d|\d{3}))",
        before=r"(?s)\A(?!.*(sgd|lbfgs)).*poisson",
        ends=True,
    ),
    Known(
        "early stopping that never improves falls back to the parameters that the fit found; "
        "scikit-learn, after a refused partial_fit, to those before the program changed them",
        line=r"\.fit\(",
        place="^error$",
        kind="NoneType there, ValueError here",
        detail="here ValueError.'Solver produced non-finite",
        before=r"(?s)early_stopping=True.*partial_fit\(.*coefs_\[0\]\[0\] = np.nan",
    ),
    Known(
        "rows of long doubles are predicted in float64, beyond which there are only infinities",
        line=r"\.(predict|score)\(.*longdouble",
        detail=r"(?s)here ValueError..Input contains infinity or a value too large for dtype.'float128'"
        r"|there array.*e\+(30[89]|3[1-9]\d|[4-9]\d\d|\d{4}).*here array.*inf.*float128",
        before=r"1e\+?200",
    ),
    Known(
        "targets beyond float32 are scaled in the Poisson loss, so that its steps are those of float64; "
        "scikit-learn's exp overflows in float32",
        line=r"fit\(.*float32.*1e\+?(39|200) \*",
        place="^error$",
        kind="ValueError there, NoneType here",
        detail="there ValueError.'Solver produced non-finite",
        before="poisson",
    ),
    Known(
        "with negative weights the loss has no lower bound: L-BFGS goes to the end of scikit-learn's "
        "float32, where ours computes in float64",
        line=r"fit\(.*float32.*sample_weight=-",
        place=r"\.(loss_|best_loss_|coefs_\[\d+\]|intercepts_\[\d+\])$",
        kind="^values$",
        detail=r"beside loss_ \[array\(-inf.*\), array\(-(inf|\d\.\d+e\+\d\d)",
        before="lbfgs",
        ends=True,
    ),
    Known(
        "numbers that are text are refused before anything is changed",
        kind="after an error, unchanged here",
        detail=r"after DtypeError\('y has dtype <U",
    ),
)

STATE = r"\['(exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer)'\]"
# a program with an Adam of float16 whose eps is never greater than the default
EPS_OF_ZERO = r"\A(?!.*(eps=1e-3|'eps'\])).*to\(float16\).*Adam"
OPTIMIZERS = (
    Known(
        "16-bit parameters keep float32 state",
        place=rf"{STATE}\.dtype$",
        detail=r"there 'torch\.b?float16'\nhere 'torch\.float32'",
    ),
    Known(
        "16-bit parameters keep float32 state",
        line=r"\.get\('exp_avg'",
        place=r"^value\.dtype$",
        detail=r"there 'torch\.b?float16'\nhere 'torch\.float32'",
    ),
    Known(
        "16-bit parameters keep float32 state, so that a loaded one is a copy",
        place=rf"^(there|other|opt)\['state'\].*{STATE}$",
        detail="(?s)unchanged here.*dtype=b?float16",
        before=r"load_state_dict\((there|other|opt)\.state_dict\(\)\)",
    ),
    Known(
        "16-bit parameters keep float32 state, so that what is resized is another's",
        line="resize_",
        place=rf"^(there|other|opt)\['state'\].*{STATE}\.(shape|stride)$",
        before=r"(?s)to\(b?float16\).*load_state_dict\((there|other|opt)\.state_dict\(\)\)",
        ends=True,
    ),
    Known(
        "a parameter, its gradient and its state may be of unlike types: a step in the widest of "
        "them, held against float64",
        line=r"step\(",
        place="^error$",
        kind="RuntimeError there, NoneType here",
        detail=r"there RuntimeError.'expected (dtype \S+ for `end` but got dtype \S+|"
        r"scalar type \w+ but found \w+)'",
    ),
    Known(
        "a rate on the meta device is refused with another kind of RuntimeError",
        line=r"step\(",
        place="^error$",
        kind="NotImplementedError there, RuntimeError here",
        detail="Cannot copy out of meta tensor",
    ),
    Known(
        "a step that a rate on the meta device ends has counted nothing; PyTorch's has counted itself",
        line=r"step\(",
        place=r"\['step'\]$",
        kind="values, after an error",
        detail=r"there array\(1\.(?s:.*)here array\(0\.(?s:.*)cannot be called on meta tensors",
        before=r"(?s)set_default_device\('meta'\).*\['lr'\] = torch\.tensor",
    ),
    Known(
        "a step count on the meta device cannot go to the parameter's",
        place="^error$",
        kind="(NoneType|KeyError) there, NotImplementedError here",
        detail="Cannot copy out of meta tensor",
        before=r"(?s)set_default_device\('meta'\).*'step'\] = torch.tensor",
    ),
    Known(
        "PyTorch's fused amsgrad keeps NaN in whole vectors and loses it in their rest",
        line=r"step\(",
        place=r"'max_exp_avg_sq'",
        kind="values",
        detail="(?s)here array.*nan",
        before=r"(?s)(amsgrad.*fused=True|fused=True.*amsgrad).*(nan|inf)",
    ),
    Known("state lies in the order of the parameter's memory", place=rf"{STATE}\.stride$"),
    Known(
        "state lies in the order of the parameter's memory, so that one loaded in another is a copy",
        place=rf"^(there|other|opt)\['state'\].*{STATE}$",
        kind="values",
        detail="unchanged here",
        before=r"(?s)(channels_last|\.t\(\)).*load_state_dict\((there|other|opt)\.state_dict\(\)\)",
    ),
    Known(
        "a moment of infinity stays what it is along a gradient of infinity; PyTorch's, an "
        "interpolation, is NaN",
        place=r"'exp_avg'\]$",
        kind="values",
        detail="(?s)there array.*nan.*here array.*inf",
        before=r"float\('inf'\)",
    ),
    Known(
        "state that a step in inference mode has made can be written by one outside of it",
        line=r"step\(|^opt\.state\[P\[0\]\]",
        place="^error$",
        kind="RuntimeError there, NoneType here",
        detail="Inplace update to inference tensor outside InferenceMode",
        before=r"with torch.inference_mode\(\): opt.step\(\)\n",
    ),
    Known(
        "a layer of 16 bits within torch.vmap reads its weight in the backward pass, and says so if it "
        "has another dtype by then",
        place="^error$",
        kind="NoneType there, RuntimeError here",
        detail="expected m1 and m2 to have the same dtype",
        before=r"(?s)vmap\(m\).*\.to\(",
    ),
    Known(
        "a step that raises has changed nothing",
        line=r"step\(",
        kind="after an error, unchanged here",
    ),
    Known(
        "a step that raises has done no update: state that is new is of step 0",
        line=r"step\(",
        place=r"\['step'\]$",
        kind="values, after an error, changed here",
        detail=r"there array\(1\..*\nhere array\(0\..*\nafter StateError",
    ),
    Known(
        "a step that raises has made no state, of an optimizer that is new in the line too",
        line=r"^there = (?s:.*)there\.step\(",
        place=r"^there\['state'\]\.keys$",
        kind="not equal, after an error",
        detail=r"\nhere \[\]\n",
    ),
    Known("a step that raises looks at state first", kind=r"[^N]\w+Error there, StateError here"),
    Known(
        "state of an unlike dtype is an error for parameters of 16 bits too",
        place="^error$",
        kind="NoneType there, StateError here",
        detail="the optimizer has state of .*float64",
        before=r"'exp_avg_sq'\] = .*double\(\)",
    ),
    Known(
        "a step count may be a number of any kind, as in old checkpoints",
        line=r"step\(",
        place="^error$",
        detail="there RuntimeError.*(list of singleton tensors|except `step` tensors).*\nhere None",
    ),
    Known(
        "a step count becomes a float32 tensor where it is loaded or used",
        place=r"\['step'\](\.dtype)?$",
        detail=r"there \d+\n|there 'torch.int64'",
        before=r"'step'\] = ",
        ends=True,
    ),
    Known(
        "a step count that was a number goes to the parameter's device, not to the default one",
        place=r"\['step'\]\.device$",
        detail="there 'meta'\nhere 'cpu'",
        before=r"(?s)set_default_device\('meta'\).*'step'\] = \d",
        ends=True,
    ),
    Known(
        "float32 state of 16-bit parameters holds infinities apart that are NaN in 16 bits",
        line=r"step\(",
        kind="values",
        detail="there array.*(?s:.*)nan(?s:.*)dtype=b?float16",
        before="inf",
    ),
    Known(
        "float32 state of 16-bit parameters holds squares that are 0 in float16, by whose root "
        "PyTorch divides",
        kind="values",
        detail="there array.*(?s:.*)(nan|inf)(?s:.*)here array.*(?s:.*)dtype=float16",
        before=r"(?s)to\(float16\).*Adam\w*\(.*eps=0[,)].*step\(",
    ),
    Known(
        "PyTorch's eps of 1e-8 is 0 in float16, so that its own Adam divides by squares that are 0 "
        "there, here of state that was rounded once and not in each step",
        kind="values$",
        detail="(?s)inf units from float64, PyTorch inf.*dtype=float16",
        before=rf"(?s){EPS_OF_ZERO}.*there = torch\.optim\.Adam.*there\.step\(",
    ),
    Known(
        "PyTorch's eps of 1e-8 is 0 in float16, so that its Adam divides by squares that are 0 there",
        kind="values, after an error, unchanged here",
        detail=r"there array.*(?s:.*)(nan|inf)(?s:.*)here array.*(?s:.*)dtype=float16",
        before=rf"(?s){EPS_OF_ZERO}.*step\(",
    ),
    Known(
        "a 16-bit number near zero has another sign after steps with float32 state",
        line=r"^for p in P: p\.grad\.mul_\(float\('inf'\)\)",
        place=r"\.grad$",
        kind="values",
        detail="(?s)there .*dtype=b?float16",
        before=r"step\(closure\)|sum\(\(p \* p\)",
    ),
    Known(
        "float32 state of 16 bits does not serve float64, also beside an old 16-bit gradient",
        line=r"step\(",
        place="^error$",
        kind="NoneType there, StateError here",
        detail=r"has state of .* torch\.float32 on cpu for a parameter of .* torch\.float64",
        before=r"\.data = P\[0\]\.data\.double\(\)|p\.data\.to\(float64\)|P\[0\]\.data = P\[0\]\.double\(\)",
    ),
    Known(
        "storage that came from a file is copied, and may then be resized",
        place=r"\.resizable$",
        detail="there False\nhere True",
        before=r"by_file\(",
    ),
    Known(
        "storage that came from a file is copied, and may then be resized",
        line="resize_",
        place="^error$",
        kind="RuntimeError there, NoneType here",
        detail="storage that is not resizable",
        before=r"by_file\(",
        ends=True,
    ),
    Known(
        "16-bit parameters keep float32 state; in float16 PyTorch's eps of 1e-8 is 0, and its step "
        "along a gradient of 0 is NaN",
        kind="^values$",
        detail="there array.*nan.*dtype=float16",
        before=r"(?s)float16.*Adam\w*\(.*step\(.*\.half\(\)",
        ends=True,
    ),
    Known(
        "16-bit parameters keep float32 state, as it came from a file",
        place=rf"{STATE}\.resizable$",
        detail="there True\nhere False",
        before=r"by_file\(",
    ),
    Known(
        "a learning rate may be a tensor whatever the options are",
        line=r"step\(",
        place="^error$",
        kind="RuntimeError there, NoneType here",
        detail="lr as a Tensor is not supported",
    ),
    Known(
        "PyTorch's foreach kernels overwrite the gradients under nesterov, these do not",
        place=r"\.grad$",
        kind="values",
        detail="unchanged here",
        before="nesterov",
    ),
    Known(
        "autograd is told what was written, also for fused=True",
        place=r"\.version$",
        detail="there False\nhere True",
        before="fused=True",
    ),
    Known(
        "autograd is told what was written, so that a graph made before a step of fused=True raises",
        place="^error$",
        kind="NoneType there, RuntimeError here",
        detail="modified by an inplace operation",
        before=r"(?s)fused=True.*opt\.step\(\)",
    ),
    Known(
        "PyTorch's fused kernels pair elements of unlike strides by their place in memory",
        line=r"step\(",
        place=r"^(P\[1\]|(there|other|opt)\['state'\])",
        kind="values",
        before=r"(?s)channels_last.*fused=True|fused=True.*channels_last",
    ),
)
LOSSES = (
    Known(
        "of one class with smoothing, (1 - eps) + eps is rounded, so that a gradient of 0 is a rounding "
        "of the upstream one",
        place=r"\.grad$",
        kind="^values$",
        detail=r"^\d\.\d+ units from float64, PyTorch 0\n",
        before=r"(?s)W = torch.randn\(1, .*randint\(1, .*cross_entropy\(.*label_smoothing=0\.",
    ),
    Known(
        "class indices may be of any integer type (a label out of range may be next)",
        place="^error$",
        kind="RuntimeError there, (NoneType|LabelError) here",
        detail=r"xpected (target dtype to be|scalar type|dtype) (Long|int32/int64)",
    ),
    Known(
        "the gradient of logits (N, C, d1, ...) lies in the order of the computation",
        line=r"autograd\.grad",
        place=r"\.stride$",
    ),
    Known(
        "rows of ignore_index add nothing to the gradient, even where they are not finite",
        place=r"^(x\.grad|value.*)$",
        kind="values",
        detail="there array(?s:.*)nan",
        before=r"(?s)(float\('-?(inf|nan)'\)|1e4 |1e30).*(ignore_index|-100)",
    ),
    Known(
        "along an infinite upstream gradient p - y times infinity is infinite, where PyTorch subtracts "
        "p times infinity from infinity, which is NaN",
        line="backward",
        place=r"^x\.grad$",
        kind="values",
        detail="(?s)there array.*nan.*here array.*inf",
        before=r"float\('-?inf'\)(?s:.*)\(l \* l\)\.sum\(\)\.backward\(\)\Z",
    ),
    Known(
        "class weights may be of another float type (a label out of range may be next)",
        line="weight=",
        place="^error$",
        kind="RuntimeError there, (NoneType|LabelError) here",
        detail="expected scalar type (Double|Float|Half|BFloat16) but found",
    ),
    Known(
        "the loss has the type of the logits, whatever that of weights and probabilities",
        place=r"^(l|value)\.dtype$",
        detail=r"there 'torch\.float(64|32)'\nhere",
        before=r"weight=|double\(\)",
    ),
    Known(
        "the backward pass reads logits and weights, which may not be changed before it",
        place="^error$",
        kind="NoneType there, RuntimeError here",
        detail="modified by an inplace operation",
        before=r"\n[xW]\.(detach\(\)|data)\.mul_",
    ),
    Known(
        "the backward pass reads logits and weights, which may not be changed before it",
        place=r"^([xW]\.grad|value.*)$",
        kind="values",
        before=r"\n[xW]\.data\.mul_\(2\)\n.*(\Z|backward)",
    ),
    Known(
        "the backward pass reads logits, from which the gradient of probabilities comes too",
        place=r"^y\.grad$",
        kind="values",
        before=r"requires_grad_\(\)\n(?s:.*)\nx\.data\.mul_\(2\)\n.*\Z",
    ),
    Known(
        "where the backward pass of a layer raises, no gradient has been added to; where PyTorch's "
        "layer is two nodes, the bias's has",
        line="backward",
        place=r"\.grad(\.dtype)?$",
        kind="(values|missing here), after an error, unchanged here",
        detail="after RuntimeError.'(Trying to backward through the graph a second time|one of the "
        "variables needed for gradient computation has been modified)",
    ),
)
LAYERS = (
    Known(
        "PyTorch's slope of the tanh-GELU cancels in float64 where it is small (2.7e-7 of it at -6), "
        "which Adam's first step magnifies",
        line="step",
        place=r"^m\[",
        kind="^values$",
        before=r"(?s)GELU\('tanh'\).*float64\).*convert.*Adam",
    ),
    Known(
        "ELU keeps what it is applied to, so that its value may be changed",
        line="backward|autograd.grad",
        place="^error$",
        kind="RuntimeError there, NoneType here",
        detail="modified by an inplace operation.*is output 0 of Elu",
        before="convert",
    ),
)
OWN_ERRORS = (
    Known(
        "the package's own error in the place of PyTorch's",
        place="^error$",
        kind=r"(RuntimeError|ValueError|TypeError|IndexError|NotImplementedError) there, "
        r"(ShapeError|DtypeError|OptionError|LabelError|DeviceUnavailable) here",
    ),
    Known(
        "not offered, and says so",
        place="^error$",
        kind=r"NoneType there, (DtypeError|OptionError|DeviceUnavailable|ShapeError) here",
        detail=r"not offered|wants at least one class|has gaps between its elements|which (linear_)?cross_entropy does not compute",
    ),
    Known(
        "the label of one row of logits has the shape ()",
        place="^error$",
        kind="NoneType there, ShapeError here",
        detail=r"target has shape \(1,\) but cross_entropy wants class indices \(\)",
    ),
    Known(
        "label_smoothing outside [0, 1] is an error",
        place="^error$",
        kind="NoneType there, OptionError here",
        detail="here OptionError.'label_smoothing is",
    ),
    Known(
        "16-bit logits give a float32 loss",
        place=r"^(l|value)\.dtype$",
        detail=r"there 'torch\.b?float16'\nhere 'torch\.float32'",
    ),
)
PATCH = (*OPTIMIZERS, *LOSSES)
TORCH = (*PATCH, *LAYERS, *OWN_ERRORS)

NETWORK = (
    Known(
        "the package's own error in the place of Python's or NumPy's",
        place="^error$",
        kind=r"(?!NoneType)\w+ there, (?!NoneType)\w+ here",
    ),
)
