"""scikit-learn's `MLPClassifier` and `MLPRegressor`, computed by this package.

    from gpubackprop.sklearn import MLPClassifier, MLPRegressor

in place of ``from sklearn.neural_network import ...`` and nothing else changed: the same
parameters, defaults, attributes, warnings and errors, and on the CPU the same numbers for the same
seed. Where there is a GPU that this package can use, it computes (``device="auto"``).

``accelerate()`` runs a program that was written for scikit-learn with the two classes exchanged;
``python -m gpubackprop.sklearn script.py`` does so from a shell. ``together()`` trains fits that
run at the same time, such as those of a grid search, in common launches on a GPU. ``spread()``
spreads them over the ranks that mpirun, srun or torchrun has started.
"""

from gpubackprop._optional import require

require("sklearn", "sklearn", "use gpubackprop.sklearn")

from gpubackprop.sklearn.accelerate import accelerate  # noqa: E402
from gpubackprop.sklearn.classifier import MLPClassifier  # noqa: E402
from gpubackprop.sklearn.onnx_pipeline import register_when_imported  # noqa: E402
from gpubackprop.sklearn.regressor import MLPRegressor  # noqa: E402
from gpubackprop.sklearn.spread import spread  # noqa: E402
from gpubackprop.sklearn.together import together  # noqa: E402

register_when_imported(MLPClassifier, MLPRegressor)

__all__ = ["MLPClassifier", "MLPRegressor", "accelerate", "spread", "together"]
