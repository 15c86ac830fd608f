"""ResNet-50 of ``keras.applications``, and the same computation in PyTorch."""

import keras
from torch import nn


def conv_bn(inside, outside, size, stride=1, padding=0):
    """Return a conv with bias and the batch norm of ``keras.applications``."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, size, stride, padding),
        nn.BatchNorm2d(outside, eps=1.001e-5, momentum=0.01),
    )


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1: the first version, whose stride is in the first 1x1 conv."""

    def __init__(self, inside, width, stride=1, project=False):
        super().__init__()
        self.reduce = conv_bn(inside, width, 1, stride)
        self.conv = conv_bn(width, width, 3, padding=1)
        self.expand = conv_bn(width, 4 * width, 1)
        self.shortcut = conv_bn(inside, 4 * width, 1, stride) if project else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.reduce(x))
        out = self.expand(self.relu(self.conv(out)))
        return self.relu(out + self.shortcut(x))


class ResNet50(nn.Module):
    def __init__(self, classes=1000):
        super().__init__()
        self.stem = nn.Sequential(
            *conv_bn(3, 64, 7, stride=2, padding=3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        blocks, inside = [], 64
        for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for i in range(count):
                first = i == 0
                blocks.append(Bottleneck(inside, width, stride if first else 1, project=first))
                inside = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x):
        return self.fc(self.pool(self.blocks(self.stem(x))).flatten(1))


def keras_resnet50(shape=(64, 64, 3)):
    return keras.applications.ResNet50(weights=None, input_shape=shape, classifier_activation=None)
