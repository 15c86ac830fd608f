"""Residual networks of basic blocks: ResNet-20 for CIFAR and ResNet-18 for ImageNet."""

import keras
import torch
from keras import layers
from torch import nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convs, and a 1x1 conv on the way around them where shapes change."""

    def __init__(self, inside, outside, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet20(nn.Module):
    """Three stages of three blocks, 16, 32 and 64 channels wide."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        blocks, inside = [], 16
        for width in (16, 32, 64):
            for i in range(3):
                blocks.append(BasicBlock(inside, width, 2 if i == 0 and width > 16 else 1))
                inside = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(F.avg_pool2d(x, x.size(3)).flatten(1))


class ResNet18(nn.Module):
    """Four stages of two blocks behind a 7x7 conv and a max-pool."""

    def __init__(self, classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 64))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def batch_norm(**options):
    """Return a batch norm with PyTorch's defaults, which are not those of Keras."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **options)


class KerasBasicBlock(layers.Layer):
    """The block as a layer. With strides, Keras's "same" pads otherwise than PyTorch's 1."""

    def __init__(self, width, strides=1, project=False, **options):
        super().__init__(**options)
        self.pad = layers.ZeroPadding2D(1)
        self.conv1 = layers.Conv2D(width, 3, strides, use_bias=False)
        self.bn1 = batch_norm()
        self.conv2 = layers.Conv2D(width, 3, padding="same", use_bias=False)
        self.bn2 = batch_norm()
        self.projection = None
        if project:
            self.projection = layers.Conv2D(width, 1, strides, use_bias=False)
            self.projection_bn = batch_norm()

    def call(self, x, training=None):
        shortcut = x
        if self.projection is not None:
            shortcut = self.projection_bn(self.projection(x), training=training)
        x = self.bn1(self.conv1(self.pad(x)), training=training)
        x = self.conv2(keras.ops.relu(x))
        return keras.ops.relu(self.bn2(x, training=training) + shortcut)


class KerasResNet20(keras.Model):
    def __init__(self, classes=10):
        super().__init__()
        self.stem = layers.Conv2D(16, 3, padding="same", use_bias=False)
        self.stem_bn = batch_norm()
        self.blocks = []
        for width in (16, 32, 64):
            first = KerasBasicBlock(width, 2, project=True) if width > 16 else KerasBasicBlock(16)
            self.blocks += [first, KerasBasicBlock(width), KerasBasicBlock(width)]
        self.pool = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(classes)

    def call(self, x, training=None):
        x = keras.ops.relu(self.stem_bn(self.stem(x), training=training))
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(self.pool(x))


def keras_resnet20():
    model = KerasResNet20()
    model(keras.ops.zeros((1, 32, 32, 3)))
    return model


def keras_resnet18(shape=(64, 64, 3), classes=1000):
    def block(x, width, strides, name):
        shortcut = x
        if strides > 1:
            shortcut = layers.Conv2D(
                width, 1, strides, use_bias=False, name=f"{name}_shortcut_conv"
            )(x)
            shortcut = batch_norm(name=f"{name}_shortcut_bn")(shortcut)
        x = layers.ZeroPadding2D(name=f"{name}_pad")(x)
        x = layers.Conv2D(width, 3, strides, use_bias=False, name=f"{name}_conv1")(x)
        x = layers.ReLU(name=f"{name}_relu1")(batch_norm(name=f"{name}_bn1")(x))
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_conv2")(x)
        x = batch_norm(name=f"{name}_bn2")(x)
        x = layers.Add(name=f"{name}_add")([x, shortcut])
        return layers.ReLU(name=f"{name}_relu2")(x)

    inputs = layers.Input(shape, name="images")
    x = layers.ZeroPadding2D(3, name="stem_pad")(inputs)
    x = layers.Conv2D(64, 7, 2, use_bias=False, name="stem_conv")(x)
    x = layers.ReLU(name="stem_relu")(batch_norm(name="stem_bn")(x))
    x = layers.ZeroPadding2D(1, name="pool_pad")(x)  # all is positive here: zero is -infinity
    x = layers.MaxPooling2D(3, 2, name="pool")(x)
    for stage, width in enumerate((64, 128, 256, 512)):
        x = block(x, width, 1 if stage == 0 else 2, f"stage{stage}_a")
        x = block(x, width, 1, f"stage{stage}_b")
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="classifier")(x), name="resnet18")
