"""Models of `transformers` with padding masks are batched over rows, in a copy that makes all its masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import NETWORKS, Logits, bert, gpt2, lora
from numpy.testing import assert_allclose
from torch import nn

from fimoda import GradDot
from fimoda.adapters import as_final_model
from fimoda.fallbacks import explanations

transformers = pytest.importorskip("transformers")

MADE = {"bert": bert, "gpt2": gpt2, "lora": lora}


def made(name: str) -> tuple[nn.Module, dict[str, np.ndarray], np.ndarray]:
    if name == "lora":
        pytest.importorskip("peft")
    torch.manual_seed(0)
    rows = NETWORKS["bert"].rows(np.random.default_rng(0), 8)
    return Logits(MADE[name]).double().eval(), rows, np.arange(8) % 3


def attention_of(module: nn.Module) -> set[str]:
    configs = [getattr(part, "config", None) for part in module.modules()]
    return {c._attn_implementation for c in configs if hasattr(c, "_attn_implementation")}


@pytest.mark.parametrize("name", MADE)
def test_gradients_of_rows_are_taken_together(name):
    module, X, y = made(name)
    attributor = GradDot(module, criterion=nn.CrossEntropyLoss()).fit(X, y)
    model = attributor.model_
    assert explanations(model) == []
    assert attention_of(module) == {"sdpa"} != attention_of(model.module)
    x = {key: torch.as_tensor(part) for key, part in X.items()}
    expected = module(**x).detach()
    assert_allclose(model.outputs(model.encode_X(X)), expected, rtol=1e-12, atol=1e-14)
    rows = [{key: part[i : i + 1] for key, part in x.items()} for i in range(8)]
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = []
    for row, target in zip(rows, torch.as_tensor(y), strict=True):
        loss = nn.functional.cross_entropy(module(**row), target[None])
        found = torch.autograd.grad(loss, parameters, materialize_grads=True)
        gradients.append(torch.cat([part.reshape(-1) for part in found]))
    products = torch.stack(gradients) @ torch.stack(gradients).T
    settings = {"criterion": nn.CrossEntropyLoss(), "reweight_others": False, "lr": 1.0}
    scores = GradDot(module, **settings).fit(X, y).transform(X, y)
    assert_allclose(scores * len(y), products, rtol=1e-9, atol=1e-12)


def test_a_process_without_our_attention_registers_it():
    module, X, _ = made("bert")
    model = as_final_model(module, X, criterion=nn.CrossEntropyLoss())
    names = attention_of(model.module)
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    expected = model.outputs(model.encode_X(X))
    for interface in (AttentionInterface, AttentionMaskInterface):
        for name in names:
            interface._global_mapping.pop(name)
    assert_allclose(model.outputs(model.encode_X(X)), expected)


def test_a_model_that_would_answer_otherwise_keeps_its_attention():
    class Looks(nn.Module):
        """Its outputs depend on the name of its attention."""

        def __init__(self) -> None:
            super().__init__()
            self.model = bert()

        def forward(self, input_ids, attention_mask):
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits * (1 if self.model.config._attn_implementation == "sdpa" else 2)

    _, X, _ = made("bert")
    torch.manual_seed(0)
    model = as_final_model(Looks().eval(), X, criterion=nn.CrossEntropyLoss())
    assert attention_of(model.module) == {"sdpa"}
    assert not model.module._forward_pre_hooks
