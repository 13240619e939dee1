# Baseline of the transfer study: a plain ResNet instead of the nano network, all else equal.
_base_ = '../quickstart/deeplabv3_pinas-nano-d8_b8-poly_scenes.py'

custom_imports = dict(imports=['pinas_zoo.mm.resnet'], allow_failed_imports=False)
# The MACs of 30-32-20-03 at 128 px; the study sets the channels for its own architecture.
model = dict(
    backbone=dict(_delete_=True, type='pinas_zoo.ResNetBackbone', channels=(19, 38, 76, 114), output_stride=8),
    decode_head=dict(in_channels=456),
    auxiliary_head=dict(in_channels=304),
)
