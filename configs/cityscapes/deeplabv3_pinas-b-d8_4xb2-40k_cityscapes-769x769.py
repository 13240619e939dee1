# DeepLabV3 in the paper's form on Cityscapes, 40k, 769x769. Not trained here.
# The released network has no released training recipe: schedule, crop and augmentation are mmseg's. The paper tests at
# base 2048, crop 768, several scales; deeplabv3_released_* follows that protocol.
# With align_corners mmseg crops 8n + 1 pixels, 769 for the paper's 768.
# Pre-trained: --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
_base_ = 'mmseg::deeplabv3/deeplabv3_r50-d8_4xb2-40k_cityscapes-769x769.py'

model = dict(
    pretrained=None,  # the base's is for ResNet
    backbone=dict(
        _delete_=True,
        type='pinas_zoo.PiNASBackbone',
        arch='333-3113-330011-021',
        output_stride=8,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(
        _delete_=True,
        type='pinas_zoo.ReleasedASPPHead',
        in_channels=2048,
        in_index=3,
        channels=256,
        num_classes=19,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=True,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(align_corners=True),
)
auto_scale_lr = dict(enable=False, base_batch_size=8)
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
