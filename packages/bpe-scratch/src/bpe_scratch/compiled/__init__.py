"""The layer to run: Numba kernels over plain memory. Importing this package needs Numba."""
