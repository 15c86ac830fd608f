"""Networks whose data flows on several paths: gates, parallel convs, and two kinds of input."""

import keras
import torch
from keras import layers
from torch import nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """Weigh each channel by what all of them hold on average."""

    def __init__(self, channels, ratio=4):
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.excite = nn.Sequential(
            nn.Linear(channels, channels // ratio),
            nn.ReLU(),
            nn.Linear(channels // ratio, channels),
            nn.Sigmoid(),
        )

    def forward(self, x):
        n, c, _, _ = x.shape
        return x * self.excite(self.squeeze(x).view(n, c)).view(n, c, 1, 1)


def torch_squeeze_excite():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), SqueezeExcite(16),
        nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        SqueezeExcite(24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


def keras_squeeze_excite():
    def conv_bn_relu(x, filters):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x))

    def squeeze_excite(x, ratio=4):
        channels = x.shape[-1]
        gate = layers.GlobalAveragePooling2D()(x)
        gate = layers.Dense(channels // ratio, activation="relu")(gate)
        gate = layers.Dense(channels, activation="sigmoid")(gate)
        gate = layers.Reshape((1, 1, channels))(gate)
        return layers.Multiply()([x, gate])

    inputs = layers.Input((16, 16, 3))
    x = squeeze_excite(conv_bn_relu(inputs, 16))
    x = layers.MaxPooling2D()(x)
    x = squeeze_excite(conv_bn_relu(x, 24))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


class Inception(nn.Module):
    """Four parallel paths whose channels are put side by side."""

    def __init__(self, inside, one, reduce3, three, reduce5, five, pool):
        super().__init__()
        self.branch1 = nn.Conv2d(inside, one, 1)
        self.branch3 = nn.Sequential(
            nn.Conv2d(inside, reduce3, 1), nn.ReLU(), nn.Conv2d(reduce3, three, 3, padding=1)
        )
        self.branch5 = nn.Sequential(
            nn.Conv2d(inside, reduce5, 1), nn.ReLU(), nn.Conv2d(reduce5, five, 5, padding=2)
        )
        self.branch_pool = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(inside, pool, 1)
        )

    def forward(self, x):
        paths = [self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(x)]
        return F.relu(torch.cat(paths, dim=1))


class InceptionNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block1 = Inception(16, 8, 12, 16, 4, 6, 5)
        self.block2 = Inception(35, 12, 16, 20, 5, 8, 7)
        self.fc = nn.Linear(47, 10)

    def forward(self, x):
        x = self.block1(F.relu(self.stem(x)))
        x = self.block2(F.max_pool2d(x, 2))
        return self.fc(x.mean(dim=(2, 3)))


def keras_inception():
    def inception(x, one, reduce3, three, reduce5, five, pool, name):
        path1 = layers.Conv2D(one, 1, name=f"{name}_1x1")(x)
        path3 = layers.Conv2D(reduce3, 1, activation="relu", name=f"{name}_3x3_reduce")(x)
        path3 = layers.Conv2D(three, 3, padding="same", name=f"{name}_3x3")(path3)
        path5 = layers.Conv2D(reduce5, 1, activation="relu", name=f"{name}_5x5_reduce")(x)
        path5 = layers.Conv2D(five, 5, padding="same", name=f"{name}_5x5")(path5)
        pooled = layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_pool")(x)
        pooled = layers.Conv2D(pool, 1, name=f"{name}_pool_proj")(pooled)
        x = layers.Concatenate(name=f"{name}_concat")([path1, path3, path5, pooled])
        return layers.ReLU(name=f"{name}_relu")(x)

    inputs = layers.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="stem")(inputs)
    x = inception(x, 8, 12, 16, 4, 6, 5, "mixed_1")
    x = layers.MaxPooling2D(name="pool")(x)
    x = inception(x, 12, 16, 20, 5, 8, 7, "mixed_2")
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="inception")


class ImageAndTable(nn.Module):
    """A flattened conv branch beside a dense branch, and a head on both."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.table = nn.Linear(6, 12)
        self.fc1 = nn.Linear(8 * 8 * 8 + 12, 20)
        self.fc2 = nn.Linear(20, 4)

    def forward(self, image, table):
        image = F.max_pool2d(F.relu(self.conv(image)), 2).flatten(1)
        table = F.relu(self.table(table))
        return self.fc2(F.relu(self.fc1(torch.cat([image, table], dim=1))))


def keras_image_and_table():
    image = layers.Input((16, 16, 3), name="image")
    table = layers.Input((6,), name="table")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(image)
    x = layers.Flatten(name="flatten")(layers.MaxPooling2D(name="pool")(x))
    y = layers.Dense(12, activation="relu", name="table_dense")(table)
    x = layers.Concatenate(name="join")([x, y])
    x = layers.Dense(20, activation="relu", name="hidden")(x)
    return keras.Model([image, table], layers.Dense(4, name="out")(x), name="image_and_table")
