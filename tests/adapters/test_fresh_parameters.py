"""Parameters of bare modules before training, drawn again as their constructors draw them."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from torch import nn

from fimoda import LeaveOneOut
from fimoda.adapters import as_final_model, initial_parameters

CRITERION = nn.CrossEntropyLoss()
rng = np.random.default_rng(0)


def drawn(module: nn.Module, X, seed: int) -> dict[str, torch.Tensor]:
    """The parameters that training of this seed begins with, by name."""
    model = as_final_model(module.eval(), X, criterion=CRITERION)
    return model.views(initial_parameters(module, model, seed))


def moved(module: nn.Module) -> nn.Module:
    """The module after some training, far from where it began."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(7.0)
    return module


class Positions(nn.Module):
    """Attention and recurrence, with positions that the whole draws."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.empty(networks.LENGTH, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.recurrent = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 3)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.uniform_(self.positions, -1e-3, 1e-3)

    def forward(self, x):
        x = x + self.positions
        return self.head(self.recurrent(self.attention(x, x, x)[0])[0][:, -1])


def test_parts_draw_as_their_constructors_do():
    X = networks._sequences(rng, 5)
    found = drawn(moved(Positions()), X, 3)
    sizes = {"attention.in_proj_weight": (6 / 16) ** 0.5, "recurrent.weight_hh_l0": 3**-0.5}
    for name, size in {**sizes, "head.weight": 3**-0.5, "positions": 1e-3}.items():
        assert 0 < found[name].abs().max() <= size, name
    assert not found["attention.out_proj.bias"].any()
    for name, other in drawn(moved(Positions()), X, 4).items():
        assert name.startswith("attention.") or not torch.equal(other, found[name]), name
    again = drawn(moved(Positions()), X, 3)
    assert all(torch.equal(again[name], part) for name, part in found.items())


def test_a_parameter_that_nothing_draws():
    module = moved(Positions())
    module.reset_parameters = lambda: None
    with pytest.raises(ValueError, match=r"no reset_parameters draws again \(positions\)"):
        drawn(module, networks._sequences(rng, 5), 0)


def test_weights_of_a_weight_norm_are_drawn_before_they_are_parted():
    weight_norm = nn.utils.parametrizations.weight_norm
    plain = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    module = nn.Sequential(weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))
    X = networks._numbers(rng, 5)
    expected, found = drawn(moved(plain), X, 3), drawn(moved(module), X, 3)
    g, v = (found[f"0.parametrizations.weight.original{k}"] for k in (0, 1))
    torch.testing.assert_close(g * v / v.norm(dim=1, keepdim=True), expected["0.weight"])
    torch.testing.assert_close(g[:, 0], expected["0.weight"].norm(dim=1))
    for name in ("0.bias", "2.weight", "2.bias"):
        assert torch.equal(found[name], expected[name])
    assert module[0].weight.abs().max() > 1  # the user's own is as it was


@pytest.mark.parametrize("name", ["spectral_norm", "orthogonal"])
def test_what_starts_with_a_buffer_is_refused(name):
    norm = getattr(nn.utils.parametrizations, name)
    module = nn.Sequential(norm(nn.Linear(4, 4)), nn.Linear(4, 3)).eval()
    X, y = networks._numbers(rng, 6), np.arange(6) % 3
    method = LeaveOneOut(module, criterion=CRITERION, n_epochs=1, optimizer="SGD", lr=0.1)
    with pytest.raises(ValueError, match=r"keeps its start in a buffer \(0\.parametrizations"):
        method.fit(X, y)


@pytest.mark.parametrize("made", [networks.bert, networks.gpt2])
def test_models_of_transformers_draw_by_their_own_rule(made):
    pytest.importorskip("transformers")
    X = networks._padded(rng, 5)
    found = drawn(moved(made()), X, 3)
    for name, part in found.items():
        if name.endswith("bias"):
            assert not part.any(), name
        elif part.dim() == 1:  # of a normalisation
            assert (part == 1).all(), name
        else:  # normal with standard deviation .02, or less
            assert 0 < part.abs().max() < 0.1, name


def test_adapters_start_again_from_the_base_model():
    pytest.importorskip("peft")
    torch.manual_seed(0)
    module = networks.lora().eval()
    X = networks._padded(rng, 5)
    base = as_final_model(module, X, criterion=CRITERION)
    begun = base.outputs(base.encode_X(X))
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    model = as_final_model(module, X, criterion=CRITERION)
    assert not torch.allclose(model.outputs(model.encode_X(X)), begun)
    fresh = initial_parameters(module, model, 3)
    torch.testing.assert_close(model.outputs(model.encode_X(X), fresh), begun)
    first, second = (model.views(initial_parameters(module, model, seed)) for seed in (3, 4))
    for name, part in first.items():
        assert torch.equal(part, second[name]) == ("lora_A" not in name), name


def test_adapters_that_depend_on_the_base_model_are_refused():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights="pissa")
    module = peft.get_peft_model(networks.bert(dropout=0.0), config).eval()
    with pytest.raises(ValueError, match=r"lora_A\.default of init_lora_weights='pissa'"):
        drawn(module, networks._padded(rng, 5), 0)
