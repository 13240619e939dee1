# Written by tools/dev/publish_zoo.py. Trained with
# mask-rcnn_pinas-nano_fpn_b8-lin-480_scenes.py
_base_ = '../configs/nano/mask-rcnn_pinas-nano_fpn_b8-lin-480_scenes.py'
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
)
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'pinas_zoo.mm.checkpoint_loader',
    ],
)
model = dict(
    backbone=dict(init_cfg=dict(checkpoint='work_dirs/nano/retrain/iter_1500.pth', prefix='net.')),
    roi_head=dict(bbox_head=dict(num_classes=10), mask_head=dict(num_classes=10)),
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
            )
        )
    )
)
