# Written by tools/dev/publish_zoo.py. Trained with
# pinas-nano_b128-coslr-1.5k_fmnist.py
_base_ = '../configs/nano/pinas-nano_b128-coslr-1.5k_fmnist.py'
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'pinas_zoo.mm.checkpoint_loader',
    ],
)
model = dict(model=dict(arch='30-32-30-20'), num_classes=10)
randomness = dict(seed=0)
test_dataloader = dict(
    _delete_=True,
    batch_size=500,
    collate_fn=dict(type='pinas_zoo.default_collate'),
    dataset=dict(size=28, source=dict(kind='fashion-mnist', split='test'), type='pinas_zoo.SupervisedView'),
    num_workers=0,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
