"""Backbones: networks from images float [B, 3, H, W] to features float [B, out_features]."""

from dassl.absent import absent_names

from .build import BACKBONE_REGISTRY, Backbone, build_backbone
from .resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152

__getattr__ = absent_names("dassl.modeling.backbone")
