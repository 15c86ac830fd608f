"""A text classifier of transformer encoder layers."""

import keras
from keras import layers
from torch import nn

VOCABULARY, LENGTH, WIDTH, HEADS, INNER, BLOCKS, CLASSES = 50, 12, 32, 4, 64, 2, 5


class TransformerClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        block = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, BLOCKS)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens)).mean(dim=1))


class EncoderLayer(layers.Layer):
    """Attention and a two-layer perceptron, each with a residual path and a norm behind it."""

    def __init__(self, rate=0.1, **options):
        super().__init__(**options)
        self.attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, dropout=rate)
        self.feed_forward = keras.Sequential(
            [layers.Dense(INNER, activation="relu"), layers.Dropout(rate), layers.Dense(WIDTH)]
        )
        self.norm1 = layers.LayerNormalization(epsilon=1e-5)
        self.norm2 = layers.LayerNormalization(epsilon=1e-5)
        self.dropout1 = layers.Dropout(rate)
        self.dropout2 = layers.Dropout(rate)

    def call(self, x, training=None):
        attended = self.attention(x, x, training=training)
        x = self.norm1(x + self.dropout1(attended, training=training))
        y = self.feed_forward(x, training=training)
        return self.norm2(x + self.dropout2(y, training=training))


def keras_transformer():
    inputs = layers.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH)(inputs)
    for _ in range(BLOCKS):
        x = EncoderLayer()(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES)(x))
