"""Our networks beside PyTorch's, on the same weights and inputs."""
