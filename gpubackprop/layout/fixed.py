"""Attributes that cannot be assigned to, with an error that says what to do."""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar, overload

from gpubackprop.errors import ReadOnlyError

Value = TypeVar("Value")


class Fixed(Generic[Value]):
    """An attribute that only the constructor of its object sets.

    Parameters
    ----------
    advice : str
        What to do instead; it ends the error's message.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Value: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        try:
            return instance.__dict__[self.name]
        except KeyError:
            raise AttributeError(f"{type(instance).__name__} has no {self.name} yet") from None

    def __set__(self, instance: Any, value: Value) -> None:
        if instance.__dict__.get(self.name, value) is not value:
            self._refuse(instance)
        instance.__dict__[self.name] = value

    def __delete__(self, instance: Any) -> None:
        self._refuse(instance)

    def _refuse(self, instance: Any) -> None:
        raise ReadOnlyError(
            f"{type(instance).__name__}.{self.name} cannot be changed; {self.advice}"
        )
