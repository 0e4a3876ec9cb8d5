"""What pickles hold: public names of this package and numbers, so that its insides may change."""

from __future__ import annotations

import base64
import io
import pickle
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gpubackprop
import gpubackprop.torch as gt
from gpubackprop import formulas
from gpubackprop.data import Standardizer
from gpubackprop.formulas import ACTIVATIONS, POINTWISE_LOSSES, UPDATES, activation
from gpubackprop.losses import LOSSES, loss
from gpubackprop.optimizers import OPTIMIZERS, optimizer
from gpubackprop.schedules import SCHEDULES, schedule
from gpubackprop.sklearn import MLPClassifier, MLPRegressor
from tests.small_training import some_data


def load_with_names(written: bytes) -> tuple[Any, set[tuple[str, str]]]:
    """What the pickle holds, and the (module, name) of every class and function in it."""
    names: set[tuple[str, str]] = set()

    class Loader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            names.add((module, name))
            return super().find_class(module, name)

    return Loader(io.BytesIO(written)).load(), names


def is_private(module: str, name: str) -> bool:
    """Whether it is a name of this package, some part of which begins with an underscore."""
    parts = [*module.split("."), *name.split(".")]
    return parts[0] == "gpubackprop" and any(part.startswith("_") for part in parts)


def functions_in(value: Any, path: str, seen: set[int]) -> Iterator[str]:
    """Functions of this package among the attributes of attributes, as skops walks them: by
    `__getstate__`, or `vars`, without `__reduce__`."""
    if id(value) in seen or isinstance(value, (np.ndarray, type, torch.Tensor)):
        return
    seen.add(id(value))
    module = getattr(value, "__module__", None) or ""
    if isinstance(value, dict):
        parts = {str(key): item for key, item in value.items()}
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = {str(number): item for number, item in enumerate(value)}
    elif hasattr(value, "__qualname__"):
        if module.startswith("gpubackprop"):
            yield f"{path}: {module}.{value.__qualname__}"
        return
    elif not module.startswith("gpubackprop"):
        return
    else:
        state = value.__getstate__() if hasattr(value, "__getstate__") else vars(value)
        parts = state if isinstance(state, dict) else {"state": state}
    for key, item in parts.items():
        yield from functions_in(item, f"{path}.{key}", seen)


def trained(precision: str | None = None) -> Any:
    network = gpubackprop.MLP([4, 3, 3], seed=0, precision=precision)
    trainer = gpubackprop.Trainer(network, batch_size=40, schedule="step")
    trainer.fit(*some_data(), epochs=1)
    return trainer


def fitted(kind: Any, **options: Any) -> Any:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), np.arange(40) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(hidden_layer_sizes=(4,), max_iter=3, random_state=0, **options).fit(x, y)


def converted() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    gt.convert(module)
    return module


def torch_optimizer() -> torch.optim.Optimizer:
    p = nn.Parameter(torch.ones(3))
    made = gt.Adam([p])
    p.grad = torch.ones(3)
    made.step()
    return made


PERSISTED: dict[str, Callable[[], Any]] = {
    **{f"activation {n}": lambda n=n: ACTIVATIONS[n] for n in ACTIVATIONS},
    "activation with its parameter": lambda: activation("elu(0.5)"),
    **{f"update {n}": lambda n=n: UPDATES[n] for n in UPDATES},
    **{f"pointwise loss {n}": lambda n=n: POINTWISE_LOSSES[n] for n in POINTWISE_LOSSES},
    **{f"loss {n}": lambda n=n: loss(n) for n in LOSSES},
    **{f"optimizer {n}": lambda n=n: optimizer(n) for n in OPTIMIZERS},
    **{f"schedule {n}": lambda n=n: schedule(n) for n in SCHEDULES},
    "network": lambda: gpubackprop.MLP([3, 4, 2], ["gelu"], dropout=0.2),
    "network in 16 bits": lambda: gpubackprop.MLP([3, 4, 2], precision="float16"),
    "model": lambda: gpubackprop.Model(
        gpubackprop.MLP([2, 2]), Standardizer.fit(np.eye(2)), classes=np.array(["u", "v"])
    ),
    "trainer": trained,
    "trainer of scaled 16 bits": lambda: trained("float16"),
    "history": lambda: trained().history,
    **{
        f"classifier, {solver}": lambda solver=solver: fitted(MLPClassifier, solver=solver)
        for solver in ("adam", "sgd", "lbfgs", "lion", optimizer("adamw"))
    },
    "classifier that stops early": lambda: fitted(MLPClassifier, early_stopping=True),
    "regressor": lambda: fitted(MLPRegressor, activation="leaky_relu(0.2)"),
    "module of PyTorch, converted": converted,
    "layer for PyTorch": lambda: gt.LinearAct(2, 3, "gelu"),
    "optimizer for PyTorch": torch_optimizer,
}


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("what", PERSISTED)
def test_a_pickle_names_nothing_private_of_this_package(what, protocol):
    _, names = load_with_names(pickle.dumps(PERSISTED[what](), protocol))
    assert not [name for name in names if is_private(*name)]


# Networks go to skops only inside an estimator, which holds arrays; `Model.save` writes their file.
WALKED = [what for what in PERSISTED if not {"network", "model", "trainer"} & set(what.split())]


@pytest.mark.parametrize("what", [what for what in WALKED if "PyTorch" not in what])
def test_attributes_of_attributes_hold_no_function_of_this_package(what):
    assert not list(functions_in(PERSISTED[what](), what, set()))


@pytest.mark.parametrize(
    "entry",
    [*ACTIVATIONS.values(), activation("elu(0.5)"), *UPDATES.values(), *POINTWISE_LOSSES.values()],
    ids=repr,
)
def test_an_entry_is_read_again_as_the_entry_of_its_name(entry):
    again, names = load_with_names(pickle.dumps(entry))
    assert again == entry
    assert all(getattr(formulas, name) for _, name in names)  # functions that are public
    assert str(entry) in ACTIVATIONS or again.name in str(again)
    twin = object.__new__(type(entry))
    twin.__setstate__(entry.__getstate__())
    assert twin == entry


def my_value(a: Any, out: Any, work: Any, k: float) -> None:
    np.multiply(a, 2.0, out)


def my_slope(a: Any, out: Any, work: Any, k: float) -> None:
    out.fill(2.0)


def test_an_activation_of_a_program_is_written_with_the_programs_own_functions():
    mine = formulas.Activation("double", "a", my_value, my_slope)
    again, names = load_with_names(pickle.dumps(mine))
    assert again == mine
    assert (__name__, "my_value") in names


# (MLP([2, 1, 1], "leaky_relu(0.2)", output="linear", seed=0, dtype="float64"), SquaredError(),
# Exponential(0.5)) pickled by the version before entries were written by their names.
WRITTEN_BEFORE = (
    "eNrtVUlz3EQUHttxEnc2h50YyARCkFkGmzXggJ2AsYmciZmwiMWIltQeiZFa+tSSx5OqqQoHL4ETFwq4cOHEJQe4"
    "cKJq5sS/4J/AU2tixxQViktO9EHV77X6e+97W18bdptJ7nC3laRxUpMia8dpi11aWmaoTH6BoS6GDWt/pVJpB17m"
    "K4yYw+aQObSFfdZh0trczYI1ngWxVBjdg7Uap1EeclW75Rd2fmfPsJ/wD3Rx0LD2EZLkkcCYxWgbCt7q2KkIczBr"
    "lBSKrwkPh6wh2vs4rHVrPMwFjvy7yV00W99hOFqChnEicOw/Aeg7DOPWGAEkPCWfM5Hi+MLs798V63vr6K0HtiZ1"
    "l1ZK0SS8NVFi4G7tQyuQLYV7tq1DBbM4iptCijhXuHfbOkiqwrE2Tz3cV8+dDdyvlbZHrsZ5hgcWKoO1gQd1kkib"
    "0MEJLYSBFDzFhLbkZR2y+pAr8yjpMC0xPGwN09HqWTxyfXsLJxuoGuaIjvI5nKrX6xf/pKU/ZiXDo05JOxVuoCgy"
    "eMyvlg4Vbgrp4fSeYA60qlbarBffC6WO4fHJBs508YT2NBVcEZ5hFVwwqZzSf94pWD65B7RUsuWbIV4qZTxFxfR0"
    "F8+Uxap8ngiF2gqeNahchzcxVVTtJqZF6XFbBE0/U3huBc8bZsUcFzoFA7VdkHnBrFoHNLuAKwJ7cQUvGWbVnBK6"
    "XlVwVeBlc05H141zmeGsOaqPmjxReGUFrxqubTt5EGaBtG2mwsCloM9QB43Xt3Cugdf8GfO4WSXh9QZmSThlTpEw"
    "18B5EqbNORIuNPCGyB3tnr1TWQpvlqms2W6cihpVbRbwNOUdRpXqUtlmae5SXOYHGZdeeYq3TKqWBZeuecJVTMhi"
    "w7Co0+7g7UHoyeVpXNyE2cDSFi41UC8CObeBy371ur9ojVPlnEb/h8X+jf6X/W9ne1/P9H7u/XKm/03/x95vlTu8"
    "ej/1b/S+6l+bQP/XO2/9/1UuLPtUMe800MhwxcmdvY0bK+oidgU5T4U3n6ZxyvAude17Xbxv6E4bTF988M8zeYCw"
    "HAcyawdKLJHMYBHEh118ZPhj1pGiL0sDtigs4GP/hD9hHbv5XthcerYnwozjk9sa2YPCsKKhM542RWZ7ccQDiU91"
    "r9PoCmFTfxYE4qR8CD+7zRysqXg1i/i67aZkiiZNRv90WEHmcnmdgRMnpwvX0G+sS36pwcSCV9e6oCmp7e1AemId"
    "oq4ZhtwRoa2iOM78QDaxuvM86J6+ahfc0NzVFpOw8MZ2eQJ/Vz+meXk0P4opH2iekeASn+thJ6Ik66BljehXWyLM"
    "/55r5fp0PaQ4zq8nsSSOAQ8ZIqIlu4g1SpNHEUeyMPtHaVU5W0DtLx14MrQ="
)

PREDICTED = 0.29095812490472733


def test_a_file_of_the_layout_before_is_read():
    written = zlib.decompress(base64.b64decode(WRITTEN_BEFORE))
    (network, squared_error, halving), names = load_with_names(written)
    assert ("gpubackprop.formulas.activations", "leaky_relu_value") in names
    assert network.activations == (activation("leaky_relu(0.2)"),)
    np.testing.assert_allclose(network.W[0], [[0.38738615, -0.6511415]], atol=1e-8)
    np.testing.assert_allclose(network.predict([[1.0, 2.0]]), [[PREDICTED]], rtol=1e-12)
    gradients = network.gradients([[1.0, 2.0]], [[0.0]], squared_error)
    assert float(gradients.loss) == pytest.approx(PREDICTED**2 / 2)
    assert halving.gamma == 0.5
    assert pickle.loads(pickle.dumps(network)).activations == network.activations


# Trainer(MLP([2, 1], output="linear", dtype="float64"), optimizer=SGD(0.1, momentum=0.5),
# batch_size=2) after an epoch, pickled by the version before its state was one record.
TRAINER_WRITTEN_BEFORE = (
    "eNrFVl2IVUUcv3vv3fux97p7/UhwNVqSYIW8icoSEuymydoeuy67BfaQw5xz595z2PPlzBx370aggebKGIGjkNRD"
    "PVSCoJhRQqJZRL6I9BIZRFYvFkREoBBk/znn3I/dbq92Hs7M/GfmP/+P3/83c7D35IeFRPiJdXU/0LEx41PPL3OK"
    "Lddy61GHUCmyz8e9E3LDIfmKHBa9iHHiS7Gm68ZoLj8NzTTHnLT3ZWsedQIbS5Fi9aoUGUwpbrBwbhmzPV4+QGzP"
    "sHhDipVu4PiNMjI8SsrQJ9QypCigGvUcPajVQnuGTyV6IidOH3/95tmX116dunwHbXl2/dXEA/6W31r4nm3MPPBz"
    "m58UvWHAoK3yhq+CLpK1J+XC0dfklBzWUqLnKVmpVCbuwxf+tASXujZ0WIqeHZLDIpHhHsc2k+aK4VObYr03xs7d"
    "ub19+Vj3U3NNedz+fkWaa7TMYWk+rDQGoleBgUktGegi6xI+69EZyG0nblrS1HO7J9tYycxaVW6qrVrPESmKCBvc"
    "OoC55blMbhA5VIXNXsChn4HGh57I2IBTTFsxMNeIvE+JYTHYpUY5pI4lLmBvsNOGWMrKcQyLFdVuj9eCTVNgk8hQ"
    "ghkoEgnJdDgMN9T5YkWnpqZwYBJT7BBO6O5I0naMmdgnTL4ktR4teURisGqWWHWTh7IEFoV4iNThWklkkW5hFm0p"
    "YZFm1jyR2pDoNbzA5RJym65jX00Pi5weWDa3IEYQe9syFBAghKWKgoE5qS3XhsIugYQUkN80Mkp6s5h+Lt49//il"
    "P0b16xM3rm26PfqgwTw3fv/YwJ/fjv5vxQQgHmqBWAe+sz3GlmYaRJATUZzeH2BKqjsp9docaRbE2s7VMfOx1rZ+"
    "37NcPmsxEimHel3GIk2IhKoOq5rMen4EebHpvwFbZl6NO3gOGRRUAWw4rAEYF3bDcE+soAXAogF2sBhzsiKKVt0F"
    "kkWWWyVzMB6wsU5sxBzP4yYQuhxvxkVk5iNj25KcOhoZ2O+Q5cGHwFCnSpF2CIamlzi+YvWUC6NAh5j2IeWZA1CG"
    "el3d6VtLDk7n97QWdUR2XdfIBn4VbhvYlIl6sMMshkFM2lSOj156U32nxYAJ3EA7oX9ADOxaIjsRhirneA5EM3Bg"
    "+w9N76rY8Ym7KDBBeEwxCimqEgM3OiZ1kUfMMCEoNpHioU7jm2KwOrcDssSxG1MFVKeOuWGiqNqTop+SOvhJrfmQ"
    "BKWZEf1Ti0WtFCftzZ35MGzLR5BjR1YUDzMT7k8w5ShQCSFAMQmQGdhWLlXESsY9w8SMWwaiQDBVJV4AkoLIwB2s"
    "bmtIHiy3lReKdUQOfKlTAsBYEFnTAgUUct39WdGazu6Key2r09SbVfrCJwbxwQqgSPMxLWkebGcvHQFw9G7qmx9H"
    "e1bCJocRGP+1Ho0fvf4leEIMDyoDROO/XRxW/q9gkDGIMYIUo2hajo+dL7yx7eK+twIs+nTCOGoeCBq45/tEvU9C"
    "GVMUkEYUwiBWRfVGsVv1nDLyLWNG5bSEUJ3AEwmDQ8jgIQ+YF8QqBMzN/z3VfNy01Bj1ka1QJJM7xqE9EVZ++CZa"
    "tLu1QN2qCt+qGK4cK92++cQnM/fWfdD/QvbC1yN9tkhZriGPlc6wuWc+3XJo76uDd7d9d+v404Hog7SiAGhny2aV"
    "9JzqkjrU1sS9y6WdgRhcZNaSw9ci5DfmUOBGTqNpgM402R8QN7xkzC+ACReLJh5995dUJXp/JLSEumFKMSazv479"
    "PbJtZM/biQuV9+dPfyXN1SIZbG0/V8zBLo+VdJOTtfQGGB+Relh3eeR7zIr45pGuoIMqA5EiXADrZHNxi1HOQNbT"
    "4bMVolKoWbQNB6ieEB1LUNen4yqK0QGene0kP7eO2vm53EyaeSVO10/45Hsf79ub37jz1ItbP3pn0PysS6rMa6D1"
    "cy0RAPSW1QjmARC0C+TEVAmX/wEi4+Db"
)


def test_a_trainer_of_the_layout_before_goes_on_where_that_version_went_on():
    trainer = pickle.loads(zlib.decompress(base64.b64decode(TRAINER_WRITTEN_BEFORE)))
    assert (trainer.epochs, trainer.state.steps) == (1, 2)
    x, y = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]), np.array([[1.0], [2.0], [0.0]])
    history = trainer.fit(x, y, epochs=1)
    assert history["loss"] == pytest.approx([1.4384383046854665, 2.9465095162767585], rel=1e-12)
    W = [[0.7192819428539992, -0.13300565679738569]]
    np.testing.assert_allclose(trainer.network.W[0], W, rtol=1e-12)
    np.testing.assert_allclose(trainer.network.b[0], [0.18624005508685065], rtol=1e-12)
