"""An ordinary PyTorch program: two layers learn scikit-learn's handwritten digits."""

import torch
from sklearn.datasets import load_digits
from torch import nn

x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
x = x.float() / 16
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _epoch in range(10):
    for rows in torch.randperm(len(x)).split(200):
        optimizer.zero_grad()
        criterion(model(x[rows]), y[rows]).backward()
        optimizer.step()
print(f"accuracy {(model(x).argmax(1) == y).float().mean():.4f}")
