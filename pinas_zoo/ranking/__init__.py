"""Does a supernet rank architectures as stand-alone training does? The code of the study that measures it.

`task` makes the images, `spaces` the space, `truth` the stand-alone results (docs/ranking_truth.md); the other modules
train the contestants on the same images and compare their scores with the truth.
"""
