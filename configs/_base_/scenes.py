# What detection and segmentation on composed scenes share, trained for minutes on a CPU. scenes_detection.py and
# scenes_segmentation.py add the data and the evaluation, a config the model and the schedule.
_base_ = './runtime.py'

train_dataloader = dict(batch_size=8, num_workers=0)
val_dataloader = dict(batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01, foreach=True))
model_wrapper_cfg = dict(_delete_=True, type='MMDistributedDataParallel', find_unused_parameters=True)
default_hooks = dict(sampler_seed=dict(type='DistSamplerSeedHook'))
auto_scale_lr = dict(base_batch_size=8)
