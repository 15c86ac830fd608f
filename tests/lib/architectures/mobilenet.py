"""MobileNetV2 of ``keras.applications``, and the same computation in PyTorch."""

import keras
from torch import nn

STAGES = (
    # expansion, channels, blocks, stride of the first block
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_bn(inside, outside, size, stride=1, groups=1):
    """Return a conv without bias and its batch norm, padded as TensorFlow pads even sizes."""
    modules = []
    if stride == 2:
        modules.append(nn.ZeroPad2d((0, 1, 0, 1)))
    padding = size // 2 if stride == 1 else 0
    modules.append(nn.Conv2d(inside, outside, size, stride, padding, groups=groups, bias=False))
    modules.append(nn.BatchNorm2d(outside, eps=1e-3, momentum=0.001))
    return modules


class InvertedResidual(nn.Module):
    """Expand by a 1x1 conv, filter each channel by itself, project back by a 1x1 conv."""

    def __init__(self, inside, outside, stride, expansion):
        super().__init__()
        hidden = inside * expansion
        expand = [*conv_bn(inside, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(),
            *conv_bn(hidden, outside, 1),
        )
        self.residual = stride == 1 and inside == outside

    def forward(self, x):
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    def __init__(self, classes=1000):
        super().__init__()
        modules, inside = [*conv_bn(3, 32, 3, 2), nn.ReLU6()], 32
        for expansion, channels, count, stride in STAGES:
            for i in range(count):
                step = stride if i == 0 else 1
                modules.append(InvertedResidual(inside, channels, step, expansion))
                inside = channels
        self.features = nn.Sequential(*modules, *conv_bn(320, 1280, 1), nn.ReLU6())
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean([2, 3]))


def keras_mobilenet_v2(shape=(64, 64, 3)):
    return keras.applications.MobileNetV2(
        weights=None, input_shape=shape, classifier_activation=None
    )
