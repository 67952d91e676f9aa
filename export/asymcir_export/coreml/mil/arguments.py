"""What an operator of an ML Program is given, read so that nothing that it is given goes unread.

A parameter that an implementation does not ask for is one whose meaning it does not know: the operation is then not
verified.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from asymcir_export.errors import NotVerifiedError

Value: TypeAlias = Tensor | str
"""A value at run time: floats in float32 whatever their declared type, integers in int64, booleans, or a word."""


class Arguments:
    """The arguments of one operation, by parameter name."""

    def __init__(self, kind: str, values: Mapping[str, tuple[Value, ...]]) -> None:
        self.kind = kind
        self._values = values
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether a parameter was given."""
        return name in self._values

    def values(self, name: str) -> tuple[Value, ...]:
        """Return all values of a parameter.

        Raises:
            NotVerifiedError: it was not given.
        """
        if name not in self._values:
            raise NotVerifiedError(f"{self.kind} (no parameter {name})")
        self._read.add(name)
        return self._values[name]

    def tensors(self, name: str) -> list[Tensor]:
        """Return a parameter of several tensors."""
        values = self.values(name)
        if not all(isinstance(value, Tensor) for value in values):
            raise NotVerifiedError(f"{self.kind} (parameter {name} holds words)")
        return [value for value in values if isinstance(value, Tensor)]

    def tensor(self, name: str) -> Tensor:
        """Return a parameter of one tensor."""
        values = self.tensors(name)
        if len(values) != 1:
            raise NotVerifiedError(f"{self.kind} (parameter {name} holds {len(values)} values)")
        return values[0]

    def optional(self, name: str) -> Tensor | None:
        """Return a tensor, None when it was not given."""
        return self.tensor(name) if self.has(name) else None

    def number(self, name: str, default: float | None = None) -> float:
        """Return a scalar."""
        if default is not None and not self.has(name):
            return default
        value = self.tensor(name)
        if value.numel() != 1:
            raise NotVerifiedError(f"{self.kind} (parameter {name} of shape {list(value.shape)})")
        return float(value)

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a whole number."""
        return int(self.number(name, default))

    def flag(self, name: str, *, default: bool) -> bool:
        """Return a boolean."""
        return bool(self.number(name, float(default)))

    def integers(self, name: str, default: list[int] | None = None) -> list[int]:
        """Return a vector of whole numbers."""
        if default is not None and not self.has(name):
            return default
        return [int(value) for value in self.tensor(name).reshape(-1).tolist()]

    def word(self, name: str, default: str | None = None, *, among: tuple[str, ...] | None = None) -> str:
        """Return a word, one of `among`.

        Raises:
            NotVerifiedError: another word.
        """
        value = default if default is not None and not self.has(name) else self.values(name)[0]
        if not isinstance(value, str) or (among is not None and value not in among):
            raise NotVerifiedError(f"{self.kind} (parameter {name} is {value!r})")
        return value

    def refuse_unread(self) -> None:
        """Raise NotVerifiedError when a parameter was given that nothing asked for."""
        unread = sorted(set(self._values) - self._read)
        if unread:
            raise NotVerifiedError(f"{self.kind} (parameter {', '.join(unread)})")


Operator: TypeAlias = Callable[[Arguments], Tensor | tuple[Tensor, ...]]


def to_value(constant: "np.ndarray | str") -> Value:
    """Turn a constant of the file into a value; float16 to float32 is exact."""
    if isinstance(constant, str):
        return constant
    if constant.dtype == np.bool_:
        return torch.from_numpy(constant.copy())
    if np.issubdtype(constant.dtype, np.floating):
        return torch.from_numpy(constant.astype(np.float32))
    return torch.from_numpy(constant.astype(np.int64))
