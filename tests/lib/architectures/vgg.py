"""VGG-19 for CIFAR: 16 convs with batch norm, an average pool, one dense layer."""

import keras
from keras import layers
from torch import nn

PLAN = (64, 64, "pool", 128, 128, "pool", *(256,) * 4, "pool", *(512,) * 4, "pool", *(512,) * 4)


class VGG19(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        modules, channels = [], 3
        for step in PLAN:
            if step == "pool":
                modules.append(nn.MaxPool2d(2))
                continue
            modules.append(nn.Conv2d(channels, step, 3, padding=1, bias=False))
            modules += [nn.BatchNorm2d(step), nn.ReLU(inplace=True)]
            channels = step
        self.features = nn.Sequential(*modules)
        self.avgpool = nn.AvgPool2d(2)
        self.classifier = nn.Linear(512, classes)

    def forward(self, x):
        x = self.avgpool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


def keras_vgg19(classes=10):
    inputs = x = layers.Input((32, 32, 3))
    for step in PLAN:
        if step == "pool":
            x = layers.MaxPooling2D()(x)
            continue
        x = layers.Conv2D(step, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name="vgg19")
