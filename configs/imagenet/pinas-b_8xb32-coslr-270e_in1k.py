# The architecture searched for transfer, with the recipe of pinas_a.
_base_ = './pinas-a_8xb32-coslr-270e_in1k.py'

model = dict(model=dict(model_name='pinas_b'))
