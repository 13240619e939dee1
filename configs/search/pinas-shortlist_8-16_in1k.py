# The eight best of the paper's search and sixteen random architectures, each trained alone for 10 epochs on eight GPUs.
# The choice uses held-out training images, the report the validation images. Not run here: no ImageNet, no GPUs.
training = '{{ fileDirname }}/pinas-short_8xb128-coslr-10e_in1k.py'
search = '{{ fileDirname }}/pinas-tree_1000_in1k.py'  # defines the random ones before it has run
top = 8
random = 16
metric = 'accuracy/top1'
processes = 8  # per training; `pinas shortlist --workers 2` needs sixteen GPUs
workers = 1
