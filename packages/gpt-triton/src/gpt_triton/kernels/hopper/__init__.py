"""Products and attention once more, for the tensor cores of Hopper (compute capability 9) alone.

Nobody needs them to follow a training step: what they compute stands in ``kernels.matmul_kernels``,
``kernels.attention`` and ``kernels.attention_backward``, whose launchers call them where they are faster.
Reading order: partitions, matmul, attention, attention_backward, attention_d_q.
"""
