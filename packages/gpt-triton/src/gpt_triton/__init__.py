"""GPT-2 as Triton kernels: forward and backward, every derivative written by hand, no autograd."""
