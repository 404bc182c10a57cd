"""A user's torch model."""

import torch

import hasfaas
from hasfaas import function


@function(slo_ms=500, memory="1GiB")
def double(x):
    return {"twice": 2 * x, "threads": torch.get_num_threads()}


@function(slo_ms=500, memory="1GiB", batch=hasfaas.Batch(max_size=4, max_wait_ms=40))
class Linear:
    def __init__(self):
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)).eval()

    def __call__(self, x):
        with torch.inference_mode():
            return self.layers(x)
