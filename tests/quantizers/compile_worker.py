"""Compiled against eager, in a process of its own: the tests' type checks do not compile."""

import sys

import test_quantizer_laws as laws
import torch


def main(names):
    for name in names:
        torch.manual_seed(0)
        quantizer = laws.MAKE[name]().eval()

        def step(latents, quantizer=quantizer):
            return quantizer(latents).quantized, quantizer.loss_terms(latents)

        latents = laws.random_latents(quantizer)
        eager, compiled = (
            (function, latents.clone().requires_grad_())
            for function in (step, torch.compile(step, fullgraph=True))
        )
        results, gradients = [], []
        for function, x in (eager, compiled):
            quantized, terms = function(x)
            (quantized.square().sum() + sum(terms.values())).backward()
            results.append((quantized.detach(), {k: v.detach() for k, v in terms.items()}))
            gradients.append(x.grad)
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main(sys.argv[1:])
