"""torchvision's ResNets without their classifier.

The names of their tensors, and the initial weights that a seed gives, are those of Dassl's ResNets.
"""

import warnings

import torch.nn as nn
import torchvision
from torchvision.models.resnet import BasicBlock, Bottleneck

from .build import BACKBONE_REGISTRY, Backbone


class ResNet(torchvision.models.ResNet, Backbone):
    """A ResNet from images float [B, 3, H, W] to features float [B, out_features].

    Args:
        block: torchvision's `BasicBlock` or `Bottleneck`.
        layers: numbers of blocks of the four stages.
        **options: further arguments of torchvision's class, e.g. `groups`.
    """

    def __init__(self, block, layers, **options):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            super().__init__(block, layers, num_classes=0, **options)  # a classifier would draw its weights
        self._out_features = 512 * block.expansion
        self.fc = nn.Identity()

    def featuremaps(self, x):
        """Return the maps before the pooling, float [B, out_features, H / 32, W / 32]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _build(name, block, layers, pretrained, **options):
    model = ResNet(block, layers, **options)
    if pretrained:
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].get_state_dict(progress=True)
        model.load_state_dict({key: value for key, value in weights.items() if not key.startswith("fc.")})
    return model


@BACKBONE_REGISTRY.register()
def resnet18(pretrained=True, **kwargs):
    """Build a ResNet-18; `pretrained`: with torchvision's first ImageNet weights."""
    return _build("resnet18", BasicBlock, [2, 2, 2, 2], pretrained)


@BACKBONE_REGISTRY.register()
def resnet34(pretrained=True, **kwargs):
    """Build a ResNet-34, see `resnet18`."""
    return _build("resnet34", BasicBlock, [3, 4, 6, 3], pretrained)


@BACKBONE_REGISTRY.register()
def resnet50(pretrained=True, **kwargs):
    """Build a ResNet-50, see `resnet18`."""
    return _build("resnet50", Bottleneck, [3, 4, 6, 3], pretrained)


@BACKBONE_REGISTRY.register()
def resnet101(pretrained=True, **kwargs):
    """Build a ResNet-101, see `resnet18`."""
    return _build("resnet101", Bottleneck, [3, 4, 23, 3], pretrained)


@BACKBONE_REGISTRY.register()
def resnet152(pretrained=True, **kwargs):
    """Build a ResNet-152, see `resnet18`."""
    return _build("resnet152", Bottleneck, [3, 8, 36, 3], pretrained)


@BACKBONE_REGISTRY.register()
def resnext50_32x4d(pretrained=True, **kwargs):
    """Build torchvision's ResNeXt-50, which Dassl has not; see `resnet18`."""
    return _build("resnext50_32x4d", Bottleneck, [3, 4, 6, 3], pretrained, groups=32, width_per_group=4)


@BACKBONE_REGISTRY.register()
def wide_resnet50_2(pretrained=True, **kwargs):
    """Build torchvision's wide ResNet-50, which Dassl has not; see `resnet18`."""
    return _build("wide_resnet50_2", Bottleneck, [3, 4, 6, 3], pretrained, width_per_group=128)
