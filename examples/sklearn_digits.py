"""An ordinary scikit-learn program. Run it unchanged, or with this package's classifier instead:

python examples/sklearn_digits.py
python -m gpubackprop.sklearn examples/sklearn_digits.py
"""

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

x, y = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=0)
model = make_pipeline(StandardScaler(), MLPClassifier((64,), tol=1e-3, random_state=0))
model.fit(x_train, y_train)
print(f"accuracy {model.score(x_test, y_test):.4f}")
