# A small FCN head on stride 8 of the patch network, on scenes of 96 px, sized for one CPU core.
_base_ = ['mmseg::_base_/models/fcn_r50-d8.py', '../_base_/scenes_segmentation.py']

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    # The statistics that the backbone was trained with, those of the pairs.
    data_preprocessor=dict(size=(96, 96), mean=[71.4] * 3, std=[84.15] * 3),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='pinas_zoo.PiNASBackbone',
        space='pinas_patch',
        arch='44-44',
        out_indices=(1,),  # stride 8
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        in_channels=64,
        in_index=0,
        channels=128,
        num_convs=3,
        dilation=2,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes='from data',
        loss_decode=dict(avg_non_ignore=True),
        # Wall and floor are most pixels, and soon learnt.
        sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=2000),
    ),
    auxiliary_head=None,
    test_cfg=dict(mode='whole'),
)
max_iters = 1200
train_cfg = dict(by_epoch=False, max_iters=max_iters, val_interval=max_iters)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', power=0.9, eta_min=1e-5, by_epoch=False, begin=30, end=max_iters),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=250))
