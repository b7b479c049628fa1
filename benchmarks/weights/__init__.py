"""Our networks compared with PyTorch's, on the same weights and inputs."""
