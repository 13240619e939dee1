# The five best of the search and eight random architectures, each trained alone for 1,000 steps; one thread each.
training = '{{ fileDirname }}/pinas-patch-short_b32-coslr_pairs.py'
search = '{{ fileDirname }}/pinas-patch-tree_128_pairs.py'  # defines the random ones before it has run
top = 5
random = 8
metric = 'accuracy/top1'
workers = 2
