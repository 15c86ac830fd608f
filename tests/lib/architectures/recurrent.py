"""Text classifiers of recurrent layers: a bidirectional LSTM and a GRU, two layers each."""

import keras
import torch
from keras import layers
from torch import nn

VOCABULARY, LENGTH, WIDTH, UNITS, CLASSES = 50, 12, 16, 24, 5


class LSTMClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, UNITS, num_layers=2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * UNITS, CLASSES)

    def forward(self, tokens):
        _, (hidden, _) = self.lstm(self.embedding(tokens))
        return self.fc(torch.cat([hidden[-2], hidden[-1]], dim=1))


def keras_lstm():
    return keras.Sequential(
        [
            layers.Input((LENGTH,), dtype="int32"),
            layers.Embedding(VOCABULARY, WIDTH),
            layers.Bidirectional(layers.LSTM(UNITS, return_sequences=True)),
            layers.Bidirectional(layers.LSTM(UNITS)),
            layers.Dense(CLASSES),
        ]
    )


class GRUClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.gru = nn.GRU(WIDTH, UNITS, num_layers=2, batch_first=True)
        self.fc = nn.Linear(UNITS, CLASSES)

    def forward(self, tokens):
        outputs, _ = self.gru(self.embedding(tokens))
        return self.fc(outputs[:, -1])


def keras_gru():
    tokens = layers.Input((LENGTH,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, WIDTH, name="embedding")(tokens)
    x = layers.GRU(UNITS, return_sequences=True, reset_after=True, name="gru_1")(x)
    x = layers.GRU(UNITS, reset_after=True, name="gru_2")(x)
    return keras.Model(tokens, layers.Dense(CLASSES, name="head")(x), name="gru_classifier")
