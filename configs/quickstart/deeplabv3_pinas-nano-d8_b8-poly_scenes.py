# DeepLabV3 on composed scenes in ADE20K's layout, 128 px, sized for two CPU cores.
_base_ = ['mmseg::_base_/models/deeplabv3_r50-d8.py', '../_base_/scenes_segmentation.py']

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='pinas_zoo.PiNASBackbone',
        space='pinas_nano',
        arch='30-32-20-03',
        output_stride=8,
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(in_channels=384, channels=64, dilations=(1, 2, 4, 6), num_classes='from data'),
    auxiliary_head=dict(in_channels=256, channels=32, num_classes='from data'),
    test_cfg=dict(mode='whole'),
)
train_cfg = dict(by_epoch=False, max_iters=160, val_interval=160)
param_scheduler = dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=False, begin=0, end=160)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=50))
