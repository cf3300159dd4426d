"""Settings of all tests."""
import torch

torch.set_num_threads(1)  # small tensors: several threads only wait for one another on busy cores
