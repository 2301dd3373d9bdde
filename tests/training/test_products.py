"""The faster library for products of float32, where it is as exact."""

from __future__ import annotations

import threading

import pytest
import torch

from fimoda.training.products import fast_float32_products
from fimoda.training.workers import one_thread


def products(x):
    """The products of a stack: batched, with an added bias, and transposed."""
    w = torch.randn(4, 64, 96, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    w = w.to(x.dtype)
    h = torch.baddbmm(w[:, :1], x, w)
    return torch.bmm(h.mT, x)


def test_products_are_float32():
    x = torch.randn(4, 80, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    exact = products(x)
    with fast_float32_products(lambda: products(x.float())):
        found = products(x.float())
    assert float((found.double() - exact).norm() / exact.norm()) < 2e-6


def library():
    return torch.backends.mkldnn.matmul.fp32_precision


def test_the_switch_is_restored():
    before = library()

    def trial():
        return products(torch.ones(4, 8, 64))

    with fast_float32_products(trial):
        pass
    assert library() == before
    with pytest.raises(KeyError), fast_float32_products(trial):
        raise KeyError
    assert library() == before

    def failing():
        raise KeyError

    with pytest.raises(KeyError), fast_float32_products(failing):
        pass
    assert library() == before


def test_inexact_products_are_refused():
    """A trial that is not float32 under the switch leaves it off."""
    before = library()

    def trial():
        exact = products(torch.ones(4, 8, 64))
        return exact if library() == before else exact.bfloat16().float()

    with fast_float32_products(trial):
        assert library() == before


def test_float64_is_left_alone():
    before = library()
    with fast_float32_products(lambda: products(torch.ones(4, 8, 64, dtype=torch.float64))):
        assert library() == before


def test_threads_take_turns():
    """Whoever trains has torch's settings for itself; afterwards they are as before."""
    before = torch.get_num_threads(), library()
    inside, most = [], []

    def train():
        with one_thread(), fast_float32_products(lambda: products(torch.ones(4, 8, 64))):
            inside.append(1)
            most.append(len(inside))
            products(torch.ones(4, 200, 64))
            inside.pop()

    threads = [threading.Thread(target=train) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
    assert (torch.get_num_threads(), library()) == before
