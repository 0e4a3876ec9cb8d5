"""Attributes that cannot be assigned to, and attributes whose assigned values are checked."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Generic, Protocol, Self, TypeVar, cast, overload

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


class NotHeld(Fixed[Any]):
    """The name of a constructor's argument that is no attribute: an assignment would do nothing."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        kind = type(instance).__name__
        raise AttributeError(f"{kind!r} object has no attribute {self.name!r}; {self.advice}")

    def __set__(self, instance: Any, value: Any) -> None:
        self._refuse(instance)


Held = TypeVar("Held", covariant=True)


class Assignable(Protocol[Held]):
    """What `assignable` makes, for type checkers: values of any kind are assigned."""

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Held: ...

    def __set__(self, instance: Any, value: Any) -> None: ...


def assignable(take: Callable[[Any, Any], Held]) -> Assignable[Held]:
    """Make a property of a method that takes what is assigned and returns what is held.

    The property has the method's name and docstring. What is held is in an attribute of that name
    after an underscore, and is read without a call.
    """
    place = f"_{take.__name__}"

    def assign(self: Any, value: Any) -> None:
        setattr(self, place, take(self, value))

    return cast("Assignable[Held]", property(attrgetter(place), assign, doc=take.__doc__))
