# The eight best of the paper's search and sixteen random architectures, each trained alone for 10 epochs on eight GPUs.
# Held-out training images choose, the validation images report. Not run here: no ImageNet, no GPUs.
training = '{{ fileDirname }}/pinas-short_8xb128-coslr-10e_in1k.py'
top = 8
random = 16
metric = 'accuracy/top1'
processes = 8  # of one training; tools/shortlist.py --workers 2 takes sixteen GPUs
workers = 1
