# What configs of mmseg's segmentors put in place of their ResNet-50 and its head. The values are named by the configs
# (_base_.pinas_b_d8); nothing else reads them.
_base_ = './resnest50.py'

sync_bn = dict(type='SyncBN', requires_grad=True)
pinas_b_d8 = dict(
    _delete_=True, type='pinas_zoo.PiNASBackbone', arch='333-3113-330011-021', output_stride=8, norm_cfg=sync_bn
)
resnest50_d8 = dict(_base_.resnest50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True)
# The head of the released segmentors; a config adds the number of classes.
released_aspp = dict(
    _delete_=True,
    type='pinas_zoo.ReleasedASPPHead',
    in_channels=2048,
    in_index=3,
    channels=256,
    norm_cfg=sync_bn,
    align_corners=True,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
)
