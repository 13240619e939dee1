# The segmentor under checkpoints/: the quickstart's, ten times as long on twice the scenes.
_base_ = '../quickstart/deeplabv3_pinas-nano-d8_b8-poly_scenes.py'

root = 'work_dirs/nano/scenes/ade20k/'
model = dict(
    backbone=dict(arch='30-02-00-10', init_cfg=dict(type='Pretrained', checkpoint='pinas://pinas_nano_a.fmnist'))
)
train_dataloader = dict(dataset=dict(data_root=root))
val_dataloader = dict(dataset=dict(data_root=root))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=1600, val_interval=1600)
param_scheduler = dict(end=1600)
