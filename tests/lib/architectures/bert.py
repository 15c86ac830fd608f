"""A BERT encoder: the one of Hugging Face, and two ways to write it in Keras."""

import keras
from keras import layers, ops

VOCABULARY, POSITIONS, HIDDEN, HEADS, BLOCKS, INNER = 60, 16, 32, 4, 2, 64


def torch_bert():
    """Return Hugging Face's model, tiny and with random weights."""
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=POSITIONS,
            hidden_size=HIDDEN,
            num_attention_heads=HEADS,
            num_hidden_layers=BLOCKS,
            intermediate_size=INNER,
            attn_implementation="eager",
        )
    )


def norm(**options):
    return layers.LayerNormalization(epsilon=1e-12, **options)


class BertEmbeddings(layers.Layer):
    """Tokens, positions and one token type."""

    def __init__(self, **options):
        super().__init__(**options)
        self.word = layers.Embedding(VOCABULARY, HIDDEN, name="word")
        self.position = layers.Embedding(POSITIONS, HIDDEN, name="position")
        self.token_type = layers.Embedding(2, HIDDEN, name="token_type")
        self.norm = norm(name="norm")
        self.dropout = layers.Dropout(0.1)

    def call(self, ids, training=None):
        positions = ops.expand_dims(ops.arange(ids.shape[1]), 0)
        x = self.word(ids) + self.token_type(ops.zeros_like(ids)) + self.position(positions)
        return self.dropout(self.norm(x), training=training)


class SelfAttention(layers.Layer):
    """Multi-head attention written out: four dense layers and two matrix products."""

    def __init__(self, **options):
        super().__init__(**options)
        self.query = layers.Dense(HIDDEN, name="query")
        self.key = layers.Dense(HIDDEN, name="key")
        self.value = layers.Dense(HIDDEN, name="value")
        self.output_dense = layers.Dense(HIDDEN, name="output")

    def split(self, x):
        """(batch, time, features) to (batch, heads, time, features of a head)."""
        x = ops.reshape(x, (-1, x.shape[1], HEADS, HIDDEN // HEADS))
        return ops.transpose(x, (0, 2, 1, 3))

    def call(self, x):
        query, key, value = (self.split(dense(x)) for dense in (self.query, self.key, self.value))
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
        weights = ops.softmax(scores / (HIDDEN // HEADS) ** 0.5, axis=-1)
        mixed = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))
        return self.output_dense(ops.reshape(mixed, (-1, x.shape[1], HIDDEN)))


def keras_bert():
    """Return the functional build with Keras's own attention layer."""
    ids = layers.Input((12,), dtype="int32", name="input_ids")
    x = BertEmbeddings(name="embeddings")(ids)
    for i in range(BLOCKS):
        name = f"block{i}"
        attention = layers.MultiHeadAttention(
            HEADS, HIDDEN // HEADS, dropout=0.1, name=f"{name}_attention"
        )
        x = norm(name=f"{name}_attention_norm")(x + attention(x, x))
        y = layers.Dense(INNER, activation="gelu", name=f"{name}_inner")(x)
        y = layers.Dense(HIDDEN, name=f"{name}_outer")(y)
        x = norm(name=f"{name}_norm")(x + layers.Dropout(0.1)(y))
    pooled = layers.Dense(HIDDEN, activation="tanh", name="pooler")(x[:, 0])
    return keras.Model(ids, {"last_hidden_state": x, "pooler_output": pooled}, name="bert")


class HandwrittenBert(keras.Model):
    """The subclassed build with its own attention."""

    def __init__(self):
        super().__init__()
        self.embeddings = BertEmbeddings()
        self.attentions = [SelfAttention() for _ in range(BLOCKS)]
        self.attention_norms = [norm() for _ in range(BLOCKS)]
        self.inner = [layers.Dense(INNER, activation="gelu") for _ in range(BLOCKS)]
        self.outer = [layers.Dense(HIDDEN) for _ in range(BLOCKS)]
        self.norms = [norm() for _ in range(BLOCKS)]
        self.pooler = layers.Dense(HIDDEN, activation="tanh")

    def call(self, ids, training=None):
        x = self.embeddings(ids, training=training)
        for i in range(BLOCKS):
            x = self.attention_norms[i](x + self.attentions[i](x))
            x = self.norms[i](x + self.outer[i](self.inner[i](x)))
        return {"last_hidden_state": x, "pooler_output": self.pooler(x[:, 0])}


def keras_bert_by_hand():
    model = HandwrittenBert()
    model(ops.zeros((1, 12), dtype="int32"))
    return model
