"""Architectures as people write them, each in PyTorch and in Keras; the pairs compute the same."""

from functools import partial

from architectures import (
    bert,
    branches,
    generators,
    lenet,
    mobilenet,
    recurrent,
    resnet,
    resnet50,
    transformer,
    vgg,
)
from architectures._case import (
    Case,
    Input,
    channels_first,
    channels_last,
    for_keras,
    for_torch,
)

__all__ = ["CASES", "Case", "Input", "channels_first", "channels_last", "for_keras", "for_torch"]

_CIFAR = (Input((3, 32, 32)),)
_PHOTO = (Input((3, 64, 64)),)
_SMALL = (Input((3, 16, 16)),)


def _text(module) -> tuple[Input, ...]:
    return (Input((12,), tokens=module.VOCABULARY),)


def _conv(depth: int, kernels: int) -> Case:
    return Case(
        partial(lenet.torch_conv, depth), partial(lenet.keras_conv, depth), _CIFAR, kernels,
        notes="a dense layer behind a flatten",
    )  # fmt: skip


CASES: dict[str, Case] = {
    "lenet-300-100": Case(
        lenet.LeNet300, lenet.keras_lenet300, (Input((1, 28, 28)),), 266_200,
        notes="the model flattens",
    ),
    "conv-2": _conv(2, 4_300_992),
    "conv-4": _conv(4, 2_425_024),
    "conv-6": _conv(6, 2_261_184),
    "vgg-19": Case(
        vgg.VGG19, vgg.keras_vgg19, _CIFAR, 20_018_880 + 5_120,
        notes="a flatten of 1x1 images in PyTorch, a global pool in Keras",
    ),
    "resnet-20": Case(
        resnet.ResNet20, resnet.keras_resnet20, _CIFAR, 267_696 + 2_560 + 640,
        notes="1x1 projections; the Keras build is subclassed",
    ),
    "resnet-18": Case(
        resnet.ResNet18, resnet.keras_resnet18, _PHOTO, parameters=11_689_512,
        notes="1000 classes, on 64x64 images",
    ),
    "resnet-50": Case(
        resnet50.ResNet50, resnet50.keras_resnet50, _PHOTO, parameters=25_583_592,
        notes="keras.applications: stride in the first 1x1, conv biases, eps 1.001e-5",
    ),
    "mobilenet-v2": Case(
        mobilenet.MobileNetV2, mobilenet.keras_mobilenet_v2, _PHOTO, parameters=3_504_872,
        notes="keras.applications: depthwise convs, asymmetric padding, ReLU6, eps 1e-3",
    ),
    "bert": Case(
        bert.torch_bert, bert.keras_bert, _text(bert),
        notes="Hugging Face; Keras with MultiHeadAttention; two outputs",
    ),
    "bert-by-hand": Case(
        bert.torch_bert, bert.keras_bert_by_hand, _text(bert),
        notes="Hugging Face; Keras with four dense layers an attention; two outputs",
    ),
    "transformer": Case(
        transformer.TransformerClassifier, transformer.keras_transformer, _text(transformer),
        notes="nn.TransformerEncoder; Keras with MultiHeadAttention in a layer of its own",
    ),
    "lstm-classifier": Case(
        recurrent.LSTMClassifier, recurrent.keras_lstm, _text(recurrent),
        only_torch=2 * 2 * 4 * recurrent.UNITS,
        notes="two bidirectional layers, one module in PyTorch, which has a second bias a gate",
    ),
    "gru-classifier": Case(
        recurrent.GRUClassifier, recurrent.keras_gru, _text(recurrent),
        notes="two layers, one module in PyTorch; reset_after in Keras",
    ),
    "autoencoder": Case(
        generators.Autoencoder, generators.keras_autoencoder, (Input((1, 28, 28)),),
        notes="dense features become channels and space; nested Keras models",
    ),
    "dcgan-generator": Case(
        generators.Generator, generators.keras_generator, (Input((generators.LATENT,)),),
        notes="a batch norm between the dense layer and the image",
    ),
    "squeeze-excite": Case(
        branches.torch_squeeze_excite, branches.keras_squeeze_excite, _SMALL,
        notes="dense features become a gate for channels",
    ),
    "inception": Case(
        branches.InceptionNet, branches.keras_inception, _SMALL,
        notes="concatenated channels",
    ),
    "image-and-table": Case(
        branches.ImageAndTable, branches.keras_image_and_table,
        (Input((3, 16, 16)), Input((6,))),
        notes="two inputs; a flattened conv branch beside dense features",
    ),
}  # fmt: skip
