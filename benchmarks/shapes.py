"""The weight shapes of networks that are too large to build in a benchmark."""


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    """Return the 54 kernels of ResNet-50 on ImageNet, 25,502,912 weights, no biases or norms.

    Convolutions are (out, in, height, width), the last layer (out, in), by PyTorch's names.
    """
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        width = 32 << stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, inputs, 1, 1)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            shapes[f"{name}.conv3.weight"] = (4 * width, width, 1, 1)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
            inputs = 4 * width
    return shapes | {"fc.weight": (1000, 2048)}
