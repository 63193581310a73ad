"""The fast layer: Numba kernels over plain arrays. Importing this package needs the extra ``compiled``."""
