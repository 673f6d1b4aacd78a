"""A torch function mode whose calls arrive in one method.

NOTE [two modes] What follows tensors is a :class:`~omenn.engine.trace.tracer.Tracer`; its passes
differ in ``handle``. A tracer looks at every tensor, keeps gradients on and is made for one pass.
What only replaces or watches calls is a ``Handler``: it must leave the model's ``no_grad`` alone,
cost nothing on other calls, and be no explanation to one that runs inside of it.
"""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode


class Handler(TorchFunctionMode):
    """Under it every call of torch becomes ``handle(func, args, kwargs)``, which runs it as it is.

    >>> import torch
    >>> class Halves(Handler):
    ...     def handle(self, func, args, kwargs):
    ...         return super().handle(func, args, kwargs) / 2
    >>> with Halves():
    ...     y = torch.ones(2)
    >>> assert y.tolist() == [0.5, 0.5]
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.handle(func, args, kwargs or {})

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)
