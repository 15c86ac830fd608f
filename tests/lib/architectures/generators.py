"""Networks that make images: features become channels and space on the way out."""

import keras
from keras import layers
from torch import nn

LATENT = 16


class Autoencoder(nn.Module):
    """Strided convs, a dense bottleneck, and transposed convs back to the image."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 7 * 7, LATENT),
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, 16 * 7 * 7),
            nn.ReLU(),
            nn.Unflatten(1, (16, 7, 7)),
            nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        return self.decoder(self.encoder(x))


def keras_autoencoder():
    encoder = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(8, 4, strides=2, padding="same", activation="relu"),
            layers.Conv2D(16, 4, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(LATENT),
        ],
        name="encoder",
    )
    decoder = keras.Sequential(
        [
            layers.Input((LATENT,)),
            layers.Dense(7 * 7 * 16, activation="relu"),
            layers.Reshape((7, 7, 16)),
            layers.Conv2DTranspose(8, 4, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(1, 4, strides=2, padding="same", activation="sigmoid"),
        ],
        name="decoder",
    )
    inputs = layers.Input((28, 28, 1))
    return keras.Model(inputs, decoder(encoder(inputs)), name="autoencoder")


class Generator(nn.Module):
    """DCGAN: a normalized dense layer whose features become a 4x4 image, then larger ones."""

    def __init__(self, width=32):
        super().__init__()
        self.width = width
        self.project = nn.Linear(LATENT, 4 * 4 * width, bias=False)
        self.norm = nn.BatchNorm1d(4 * 4 * width)
        self.up1 = nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width // 2)
        self.up2 = nn.ConvTranspose2d(width // 2, width // 4, 4, 2, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width // 4)
        self.up3 = nn.ConvTranspose2d(width // 4, 3, 4, 2, 1)

    def forward(self, z):
        x = self.norm(self.project(z)).relu().view(-1, self.width, 4, 4)
        x = self.norm1(self.up1(x)).relu()
        x = self.norm2(self.up2(x)).relu()
        return self.up3(x).tanh()


def keras_generator(width=32):
    def batch_norm():
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)

    model = keras.Sequential(name="generator")
    model.add(layers.Input((LATENT,)))
    model.add(layers.Dense(4 * 4 * width, use_bias=False))
    model.add(batch_norm())
    model.add(layers.ReLU())
    model.add(layers.Reshape((4, 4, width)))
    for filters in (width // 2, width // 4):
        model.add(layers.Conv2DTranspose(filters, 4, strides=2, padding="same", use_bias=False))
        model.add(batch_norm())
        model.add(layers.ReLU())
    model.add(layers.Conv2DTranspose(3, 4, strides=2, padding="same", activation="tanh"))
    return model
