"""Attention that can be differentiated twice."""

from contextlib import AbstractContextManager

from torch.nn.attention import SDPBackend, sdpa_kernel


def differentiable_attention() -> AbstractContextManager[None]:
    """Have `scaled_dot_product_attention` use its math backend, the only one with two derivatives.

    Holds in this context only, so what is run again later has to enter one of its own.
    """
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context
