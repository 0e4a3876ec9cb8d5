"""Deviations that are decided and recorded, each with its reason and as narrow as possible.

docs/decisions/2026-11-23-sklearn.md and 2026-11-23-torch.md have the decisions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tools.fuzz.programs import Divergence


@dataclass(frozen=True)
class Known:
    """A deviation: regular expressions that line, place, kind and detail match, all of them, and
    that a line before matches, if given."""

    reason: str
    line: str = ""
    place: str = ""
    kind: str = ""
    detail: str = ""
    before: str = ""

    def matches(self, lines: Sequence[str], found: Divergence) -> bool:
        return all(
            re.search(pattern, text)
            for pattern, text in (
                (self.line, found.line),
                (self.place, found.place),
                (self.kind, found.kind),
                (self.detail, found.detail),
                (self.before, "\n".join(lines)),
            )
        )


def reason(table: Sequence[Known], lines: Sequence[str], found: Divergence) -> str:
    """Why the divergence is none; "" where it is one."""
    return next((k.reason for k in table if k.matches(lines, found)), "")


ESTIMATORS = (
    Known(
        'hasattr(MLPRegressor(solver="lbfgs"), "partial_fit") is False',
        line=r"partial_fit",
        detail=r"has no attribute 'partial_fit'|there True\nhere False",
        before=r"MLPRegressor\([^\n]*|set_params[^\n]*solver='lbfgs'",
    ),
    Known(
        "y of another width than the network's is an error, before anything is changed",
        place="^error$",
        kind="NoneType there, ShapeError here",
        detail="here ShapeError.'y has .* but the network that goes on has",
    ),
    Known(
        "y of another width than the network's is an error, before anything is changed",
        kind="after an error",
        detail="after ShapeError.'y has .* but the network that goes on has",
    ),
    Known(
        "numbers that are text are refused before anything is changed",
        line="astype.str",
        kind="after an error",
        detail=r"after DtypeError\('y has dtype <U",
    ),
)

TORCH: tuple[Known, ...] = (
    Known(
        "the package's own error in the place of PyTorch's",
        place="^error$",
        kind=r"(RuntimeError|ValueError|TypeError|IndexError|NotImplementedError) there, "
        r"(ShapeError|DtypeError|OptionError|LabelError|TargetRangeError|DeviceUnavailable) here",
    ),
    Known(
        "not offered, and says so",
        place="^error$",
        kind=r"NoneType there, (DtypeError|OptionError|DeviceUnavailable|ShapeError) here",
        detail=r"not offered|has gaps between its elements|which cross_entropy does not compute",
    ),
    Known(
        "16-bit logits give a float32 loss",
        place=r"^(l|value)\.dtype$",
        kind="not equal",
        detail=r"there 'torch\.b?float16'\nhere 'torch\.float32'",
    ),
    Known(
        "16-bit parameters keep float32 state",
        place=r"\['(exp_avg|exp_avg_sq|momentum_buffer|max_exp_avg_sq)'\]\.dtype$",
        detail=r"there 'torch\.b?float16'\nhere 'torch\.float32'",
    ),
)
TORCH += (
    Known(
        "class indices may be of any integer type",
        place="^error$",
        kind="RuntimeError there, NoneType here",
        detail=r"expected (target dtype to be|scalar type) Long",
    ),
    Known(
        "label_smoothing outside [0, 1] is an error",
        place="^error$",
        kind="NoneType there, OptionError here",
        detail="here OptionError.'label_smoothing is",
    ),
    Known(
        "autograd is told what was written, also for fused=True",
        place=r"\.version$",
        detail="there False\nhere True",
        before="fused=True",
    ),
)
TORCH += (
    Known(
        "the loss keeps the logits for the backward pass, which may not be changed before it",
        place="^error$",
        kind="NoneType there, RuntimeError here",
        detail="modified by an inplace operation",
        before=r"\nx\.(detach\(\)|data)\.mul_",
    ),
    Known(
        "16-bit parameters keep float32 state, so that a loaded one is a copy",
        place=r"^(there|other|opt)\['state'\].*\['(exp_avg|exp_avg_sq|momentum_buffer)'\]$",
        detail="dtype=b?float16",
        before=r"load_state_dict\((there|other|opt)\.state_dict\(\)\)",
    ),
)
TORCH += (
    Known(
        "class weights may be of another float type",
        place="^error$",
        kind="RuntimeError there, NoneType here",
        detail="expected scalar type (Double|Float|Half|BFloat16) but found",
        line=r"weight=",
    ),
    Known(
        "PyTorch's fused kernels pair elements of unlike strides by their place in memory",
        line=r"step\(",
        kind="values",
        before=r"(?s)(channels_last|\.t\(\)).*fused=True|fused=True.*(channels_last|\.t\(\))",
    ),
)
PATCH: tuple[Known, ...] = (TORCH[3], TORCH[4], *TORCH[6:])
NETWORK = (
    Known(
        "the package's own error in the place of Python's or NumPy's",
        place="^error$",
        kind=r"(?!NoneType)\w+ there, (?!NoneType)\w+ here",
    ),
)
