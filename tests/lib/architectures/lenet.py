"""LeNet-300-100 and Conv-2/4/6, the small networks of the first lottery-ticket paper."""

import keras
from keras import layers
from torch import nn
from torch.nn import functional as F

WIDTHS = {2: (64, 64), 4: (64, 64, 128, 128), 6: (64, 64, 128, 128, 256, 256)}


class LeNet300(nn.Module):
    """784-300-100-10 on 28x28 images."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, x):
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


def keras_lenet300():
    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(300, activation="relu", name="fc1"),
            layers.Dense(100, activation="relu", name="fc2"),
            layers.Dense(10, name="logits"),
        ]
    )


def torch_conv(depth, widths=None):
    """Return Conv-2, Conv-4 or Conv-6: pairs of 3x3 convs and a max-pool, then 256-256-10."""
    modules, channels = [], 3
    for i, width in enumerate(widths or WIDTHS[depth]):
        modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
        if i % 2:
            modules.append(nn.MaxPool2d(2))
    side = 32 // 2 ** (depth // 2)
    return nn.Sequential(
        *modules,
        nn.Flatten(),
        nn.Linear(channels * side * side, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def keras_conv(depth, widths=None):
    model = keras.Sequential([layers.Input((32, 32, 3))])
    for i, width in enumerate(widths or WIDTHS[depth]):
        model.add(layers.Conv2D(width, 3, padding="same", activation="relu"))
        if i % 2:
            model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(256, activation="relu"))
    model.add(layers.Dense(256, activation="relu"))
    model.add(layers.Dense(10))
    return model
