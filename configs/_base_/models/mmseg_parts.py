# What configs of mmseg's segmentors put in place of their ResNet-50 and its head. The values are named by the configs
# (_base_.pinas_b_d8); nothing else reads them.
sync_bn = dict(type='SyncBN', requires_grad=True)
pinas_b_d8 = dict(
    _delete_=True, type='pinas_zoo.PiNASBackbone', arch='333-3113-330011-021', output_stride=8, norm_cfg=sync_bn
)
# A baseline: mmseg's ResNeSt-50 with radix 2.
resnest50_d8 = dict(
    _delete_=True,
    type='ResNeSt',
    stem_channels=64,
    depth=50,
    radix=2,
    reduction_factor=4,
    avg_down_stride=True,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    dilations=(1, 1, 2, 4),
    strides=(1, 2, 1, 1),
    norm_cfg=sync_bn,
    norm_eval=False,
    style='pytorch',
    contract_dilation=True,
)
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
