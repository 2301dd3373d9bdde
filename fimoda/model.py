"""`FinalModel`: a frozen, functional view of a trained model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ._arrays import is_several, native
from ._identity import identity_of
from .batch_statistics import BatchStatistics, in_training
from .derivatives import row_jacobians
from .formulas import by_formulas, is_recurrent
from .losses import RowLoss
from .padding import Groups, by_length, cut
from .parameters import ParameterVector
from .recipe import Recipe, Weighting
from .returned import flattened, outputs_in
from .rows import Inputs, Padding, SeveralInputs, arguments

#: Bytes that a temporary of per-row quantities may take unless the caller says otherwise.
DEFAULT_BUDGET = 512 * 2**20


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the network itself, without what compiles it or spreads it over devices."""
    while True:
        if hasattr(module, "_orig_mod"):  # of torch.compile
            module = getattr(module, "_orig_mod")  # noqa: B009
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


@dataclass(frozen=True, eq=False)
class FinalModel(ParameterVector):
    """A trained model as functions of one flat vector of parameters.

    The module is a private copy in evaluation mode; nothing here changes it, nor the model it was
    made from. Parameters that do not require gradients are constants.

    Parameters
    ----------
    module : nn.Module
        Private copy of the network, on its device and in its dtype.
    loss : RowLoss
        The training criterion, one value per row.
    classes : ndarray of shape (n_classes,) or None
        Labels in the order of the outputs (for one output: the second is the positive class).
    class_weight : Tensor of shape (n_classes,) or None
        Weight of a row in the training objective, by class.
    l2 : Tensor of shape (n_parameters,) or None
        The training objective is ``mean_i loss_i + 0.5 * sum((l2 + decay) * theta**2)``; this part
        of the penalty is in the gradients that the optimiser is given.
    decay : Tensor of shape (n_parameters,) or None
        The other part: the optimiser's own weight decay. A run leaves it to its optimiser.
    weighting : Weighting
        How the objective weighs its rows.
    recipe : Recipe
        Optimiser, learning rate and batch size the model was trained with.
    output_ndim : int
        Axes of the module's own outputs: 1 if it returns shape ``(n,)``, more than 2 if a row has outputs at
        several positions, which are put side by side.
    classes_second : bool
        Whether the classes of positions are the second axis of the module's own outputs; otherwise the last.
    joined : bool
        Whether the tensors of a tuple that the module returns are its outputs, side by side.
    threshold : float
        A model with one output predicts the second class above this probability.
    takes_integers : bool
        Whether integers reach the module as integers, as embeddings need them; those of a dict or a
        tuple do.
    spreads : bool
        Whether a tuple reaches the module as several arguments; otherwise as one, a list.
    batch_statistics : {"frozen", "update"}
        Whether batch normalisation is trained, too. Its running statistics then follow the parameters
        in vectors of p + b numbers, which `views`, `forward`, `outputs` and `at` take as well.
    padding : Padding or None
        The padding of rows that the module is known not to look at, so that it can be cut.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from fimoda.adapters import as_final_model
    >>> net = torch.nn.Linear(3, 1)
    >>> model = as_final_model(net, np.zeros((5, 3)), criterion=torch.nn.MSELoss())
    >>> model.n_parameters
    4
    >>> model.outputs(model.encode_X(np.zeros((5, 3)))).shape
    torch.Size([5, 1])
    """

    module: nn.Module
    loss: RowLoss
    classes: NDArray[Any] | None = None
    class_weight: Tensor | None = None
    l2: Tensor | None = None
    decay: Tensor | None = None
    weighting: Weighting = field(default_factory=Weighting)
    recipe: Recipe = field(default_factory=Recipe)
    output_ndim: int = 2
    classes_second: bool = False
    joined: bool = False
    threshold: float = 0.5
    takes_integers: bool = False
    spreads: bool = False
    batch_statistics: BatchStatistics = "frozen"
    padding: Padding | None = None

    # ---- parameters -------------------------------------------------------------------------

    def at(self, theta: Tensor) -> FinalModel:
        """Return the same model with other parameters."""
        module = copy.deepcopy(self.module)
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        with torch.no_grad():
            for name, value in self.views(theta).items():
                named[name].copy_(value)
        return replace(self, module=module)

    @property
    def device(self) -> torch.device:
        return self.theta.device

    @property
    def dtype(self) -> torch.dtype:
        return self.theta.dtype

    def to(self, dtype: torch.dtype) -> FinalModel:
        """Return the same model in another floating point type."""
        weight, l2, decay = (
            None if t is None else t.to(dtype) for t in (self.class_weight, self.l2, self.decay)
        )
        module = copy.deepcopy(self.module).to(dtype)
        return replace(self, module=module, class_weight=weight, l2=l2, decay=decay)

    @cached_property
    def double(self) -> FinalModel:
        """The same model in float64."""
        return self if self.dtype == torch.float64 else self.to(torch.float64)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies parameters, buffers, architecture and loss, the same in every process."""
        return identity_of(
            {f.name: getattr(self, f.name) for f in fields(self) if f.name != "recipe"}
        )

    @property
    def penalty(self) -> Tensor | None:
        """Second derivative (p,) of the whole penalty of the training objective, diagonal."""
        if self.l2 is None or self.decay is None:
            return self.decay if self.l2 is None else self.l2
        return self.l2 + self.decay

    @cached_property
    def key(self) -> object:
        """A key that tells it from other models of this process; models that cannot be compared differ."""
        try:
            return self.fingerprint
        except (ValueError, RecursionError):
            return object()

    @cached_property
    def architecture(self) -> object:
        """A key that tells networks of other layers apart, whatever their parameters and precision."""
        return type(self.module), repr(self.module)

    # ---- outputs ----------------------------------------------------------------------------

    @cached_property
    def training_module(self) -> nn.Module:
        """The module as it is trained further: dropout active, batch statistics frozen or trained."""
        return in_training(copy.deepcopy(self.module), self.batch_statistics)

    @cached_property
    def _training_buffers(self) -> dict[str, Tensor]:
        """Buffers of the module in training, which a forward that gives it others must find again."""
        return dict(self.training_module.named_buffers())

    @cached_property
    def is_stochastic(self) -> bool:
        """True if a forward pass in further training draws random numbers."""
        return any(
            (isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0)
            or (
                getattr(part, "dropout", 0) not in (0, 0.0, None, False)
                and not isinstance(getattr(part, "dropout", None), nn.Module)
            )
            for part in self.module.modules()
        )

    @cached_property
    def is_recurrent(self) -> bool:
        """True if it has recurrent layers."""
        return is_recurrent(self.module)

    def forward(self, theta: Tensor, x: Inputs, training: bool = False) -> Tensor:
        """Return the outputs (B, C) of one model with parameters `theta` (p,)."""
        return self.call(self.views(theta), x, training)

    def call(
        self,
        parameters: dict[str, Tensor],
        x: Inputs,
        training: bool = False,
        grouped: bool = False,
    ) -> Tensor:
        """Return the outputs (B, C) of one model with named parameters.

        Rows of different lengths are cut to the longest, or are taken in `grouped` parts of similar length.
        """
        if training:
            module, parameters = self.training_module, {**self._training_buffers, **parameters}
        else:
            module = self.module
        groups = by_length(x) if grouped else Groups([(slice(None), self.cut(x, training))])
        given = [(functional_call(module, parameters, *arguments(p)), p) for _, p in groups.parts]
        return groups.joined([self._outputs_in(one, len(part)) for one, part in given])

    def of_module(self, module: nn.Module, x: Inputs) -> Tensor:
        """Return the outputs (B, C) of a module of this architecture in training, as it is."""
        args, kwargs = arguments(self.cut(x, training=True))
        return self._outputs_in(module(*args, **kwargs), len(x))

    def _outputs_in(self, returned: Any, n: int) -> Tensor:
        """Return the outputs (n, C) in what the module has returned for n rows."""
        return flattened(outputs_in(returned, n, self.joined), self.classes_second)

    def cut(self, x: Inputs, training: bool = False) -> Inputs:
        """Return inputs without padding that no row needs; dropout in training draws for all of it."""
        return x if training and self.is_stochastic else cut(x)

    def outputs(self, X: Inputs, theta: Tensor | None = None, chunk_size: int = 8192) -> Tensor:
        """Return the outputs (n, C), a chunk of rows at a time, without gradients."""
        theta = self.theta if theta is None else theta
        with torch.no_grad():
            views = self.views(theta)
            return torch.cat([self.call(views, x, grouped=True) for x in X.split(chunk_size)])

    def stacked_outputs(self, thetas: Tensor, X: Inputs) -> Tensor:
        """Return the outputs (L, n, C) of the L models `thetas` (L, p) on the same rows."""
        with torch.no_grad():
            try:
                with by_formulas(False):
                    return vmap(self.forward, in_dims=(0, None))(thetas, X)
            except RuntimeError:  # vmap has no rule for a layer, or the forward looks at numbers
                return torch.stack([self.forward(theta, X) for theta in thetas])

    def losses(self, X: Inputs, y: Tensor) -> Tensor:
        """Return the loss of each row (n,), in float64."""
        return self.loss(self.outputs(X).double(), y)

    # ---- derivatives ------------------------------------------------------------------------

    def jacobian_chunks(self, X: Inputs, budget: int = DEFAULT_BUDGET) -> Iterator[Tensor]:
        """Yield Jacobians df/dtheta, (b, C, p) at a time, each chunk within `budget` bytes."""
        row_bytes = self._jacobian_bytes(X)
        for x in X.split(max(1, budget // (2 * row_bytes))):
            yield row_jacobians(self, x)

    def _jacobian_bytes(self, X: Inputs) -> int:
        """Return the bytes of the Jacobian of one row."""
        n_outputs = self.outputs(X[:1]).shape[1]
        return n_outputs * self.n_parameters * self.theta.element_size()

    def jacobian(self, X: Inputs, budget: int = DEFAULT_BUDGET) -> Tensor:
        """Return the Jacobians df/dtheta of all rows, (n, C, p).

        Raises
        ------
        MemoryError
            If the result would take more than `budget` bytes.
        """
        n_bytes = len(X) * self._jacobian_bytes(X)
        if n_bytes > budget:
            raise MemoryError(
                f"the Jacobian of {len(X)} rows takes {n_bytes / 2**20:.0f} MiB, more than budget="
                f"{budget / 2**20:.0f} MiB. Raise budget or go through jacobian_chunks."
            )
        return torch.cat(list(self.jacobian_chunks(X, budget)))

    # ---- rows -------------------------------------------------------------------------------

    def encode_X(self, X: Any) -> Inputs:
        """Return inputs as tensors on the model's device, in its dtype, or integers where it takes them."""
        if isinstance(X, SeveralInputs) or is_several(X):
            if not isinstance(X, SeveralInputs):
                X = SeveralInputs(dict(X) if isinstance(X, Mapping) else X, self.spreads)
            return replace(X.mapped(self._encoded), padding=self.padding)
        tensor = self._encoded(X)
        return tensor.to(
            torch.long if self.takes_integers and not tensor.is_floating_point() else self.dtype
        )

    def _encoded(self, X: Any) -> Tensor:
        """Return an input on the model's device, floating point numbers in its dtype."""
        tensor = X if isinstance(X, Tensor) else torch.as_tensor(native(np.array(X, copy=True)))
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def encode_y(self, y: ArrayLike | Tensor, n_outputs: int) -> Tensor:
        """Return targets as the loss wants them.

        Raises
        ------
        ValueError
            If a label is not one of the model's classes, a target is not a number, or the shape is
            not that of the outputs.
        """
        array = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
        given = self.loss.encode(array, n_outputs, self.classes)
        encoded = torch.as_tensor(np.array(given, copy=True), device=self.device)
        return encoded.to(self.dtype) if encoded.is_floating_point() else encoded

    def predicted_targets(self, outputs: Tensor) -> Tensor:
        """Return the targets that the model predicts, encoded."""
        return self.loss.predicted_targets(outputs, self.threshold)

    def row_weights(self, y: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the weight of each row in the training objective, (n,): the loss's times sample weight."""
        weights = torch.ones(len(y), dtype=self.dtype, device=self.device)
        if self.class_weight is not None:
            weights = weights * self.class_weight[y]
        own = self.loss.row_weights(y, weights)
        if own is not None:
            weights = weights * own
        return weights if sample_weight is None else weights * sample_weight.to(weights)
