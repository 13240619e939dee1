# Written by tools/dev/publish_zoo.py. Trained with
# deeplabv3_pinas-nano-d8_b8-poly-1.6k_scenes.py
_base_ = '../configs/nano/deeplabv3_pinas-nano-d8_b8-poly-1.6k_scenes.py'
classes = (
    'T-shirt/top',
    'Trouser',
    'Pullover',
    'Dress',
    'Coat',
    'Sandal',
    'Shirt',
    'Sneaker',
    'Bag',
    'Ankle boot',
    'wall',
    'floor',
)
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'pinas_zoo.mm.checkpoint_loader',
    ],
)
model = dict(
    auxiliary_head=dict(norm_cfg=dict(type='BN'), num_classes=12),
    backbone=dict(
        init_cfg=dict(checkpoint='work_dirs/nano/retrain/iter_1500.pth', prefix='net.'), norm_cfg=dict(type='BN')
    ),
    decode_head=dict(norm_cfg=dict(type='BN'), num_classes=12),
)
randomness = dict(seed=0)
test_dataloader = dict(
    dataset=dict(
        metainfo=dict(
            classes=(
                'T-shirt/top',
                'Trouser',
                'Pullover',
                'Dress',
                'Coat',
                'Sandal',
                'Shirt',
                'Sneaker',
                'Bag',
                'Ankle boot',
                'wall',
                'floor',
            )
        )
    )
)
