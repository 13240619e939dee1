# Labelled ImageNet training images as SPOS and the linear stage read them: random resized crops; 50,000 of the training
# images are held out for ranking.
_base_ = './imagenet.py'

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            type='pinas_zoo.SupervisedView',
            source=dict(kind='folder', root='data/imagenet/train', part='train', holdout=50000, seed=0),
            size=224,
            train=True,
        ),
    ),
    collate_fn=dict(type='pinas_zoo.default_collate'),
)
