"""Settings for the usual experiments."""

from __future__ import annotations

from collections.abc import Mapping

from sparring.training.config import RetrainConfig

# MNIST with all metrics, in half an hour on two cores; trained on half of the images, as the other half is the
# independent network's.
_FULL = RetrainConfig(
    generations=10,
    pretrain_epochs=4,
    epochs=2,
    images=800,
    fresh=200,
    steps=200,
    s_max=0.128,
    independent=True,
    independent_epochs=4,
    other_images=10,
    optimizer="adadelta",
    lr=1.0,
    lr_decay=0.7,
    fooling_share=0.2,
)

PRESETS: Mapping[str, RetrainConfig] = {
    # the digits of scikit-learn, 8 x 8: about a minute on two cores
    "default": RetrainConfig(),
    # a sample of the real images and few pixels: MNIST with a perceptron in a minute or two on two cores
    "quick": RetrainConfig(
        generations=12,
        pretrain_epochs=5,
        epochs=3,
        images=500,
        s_max=0.125,
        batch_size=128,
        independent=True,
        independent_epochs=5,
        other_images=20,
        lr=2e-3,
        fooling_share=0.2,
        real_images=20_000,
    ),
    # the experiment on MNIST, at most 100 of 784 entries
    "full-sparse": _FULL,
    # the same for images without black, `mnist-non-sparse`: sparse images are then far from all real ones
    "full-non-sparse": _FULL,
    # a new network in every generation, which has to learn everything again
    "fresh-each-generation": _FULL.replace(network="fresh", epochs=4, generations=7),
    # 10 000 images of CIFAR-10 with a narrow ResNet18 (resnet18-16) in under ten minutes on two cores; at most 600 of
    # 3072 entries
    "full-cifar": RetrainConfig(
        generations=3,
        pretrain_epochs=6,
        epochs=3,
        images=100,
        fresh=50,
        steps=100,
        s_max=600,
        independent=True,
        independent_epochs=6,
        other_images=5,
        other_steps=50,
        optimizer="sgd",
        lr=0.1,
        weight_decay=5e-4,
        schedule="cosine",
        batch_size=128,
        augment="crop-flip",
        fooling_share=0.1,
    ),
}
