"""Pagelocked arrays that tell when the host reads or writes them, so that the lanes' code need not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import numpy.typing as npt

_READERS = (
    "all", "any", "argmax", "argmin", "argsort", "astype", "choose", "clip", "copy", "cumsum", "dot", "dump",
    "dumps", "flatten", "item", "max", "mean", "min", "nonzero", "prod", "repeat", "round", "searchsorted",
    "std", "sum", "take", "tobytes", "tofile", "tolist", "trace", "var",
    "__bool__", "__bytes__", "__complex__", "__contains__", "__copy__", "__deepcopy__", "__float__",
    "__format__", "__index__", "__int__", "__repr__", "__str__",
)  # fmt: skip
_WRITERS = ("fill", "itemset", "partition", "put", "sort", "byteswap")
_LOOKERS = (
    "shape", "ndim", "size", "may_share_memory", "shares_memory", "byte_bounds", "result_type", "can_cast",
    "empty_like", "zeros_like", "ones_like", "full_like",
)  # fmt: skip
"""numpy functions that look at no element."""
_VIEWS = ("reshape", "ravel", "view", "transpose", "squeeze", "swapaxes", "diagonal", "broadcast_to")
"""numpy functions of these names (`np.reshape`) give views and read nothing."""


class WatchedArray(np.ndarray[Any, Any]):
    """An array whose memory the double knows. Results of arithmetic are plain arrays.

    What it cannot see: the buffer protocol (`memoryview`, `cv2`).
    """

    told: ClassVar[Callable[[npt.NDArray[Any], bool], None]] = staticmethod(lambda array, writes: None)
    """Called with what is touched and whether it is written; the double in force sets it."""

    def __getitem__(self, key: Any) -> Any:
        got = super().__getitem__(key)
        if not (isinstance(got, np.ndarray) and _shared(got, self)):
            self._tell(self if isinstance(got, np.ndarray) else self._place(key), writes=False)
            return np.asarray(got) if isinstance(got, np.ndarray) else got
        return got

    def __setitem__(self, key: Any, value: Any) -> None:
        self._tell(self._place(key), writes=True)
        if isinstance(value, WatchedArray):
            value._tell(value, writes=False)
        super().__setitem__(key, value)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        _tell_all(inputs, writes=method == "at")
        out: tuple[Any, ...] = kwargs.get("out") or ()
        _tell_all(out, writes=True)
        if out:
            kwargs["out"] = tuple(_plain(each) for each in out)
        got = getattr(ufunc, method)(*map(_plain, inputs), **{k: _plain(v) for k, v in kwargs.items()})
        return out[0] if len(out) == 1 else got

    def __array_function__(
        self, func: Any, types: Iterable[type], args: Iterable[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        arguments = tuple(args)
        if func.__name__ in _VIEWS:
            return super().__array_function__(func, types, arguments, kwargs)
        if func.__name__ in _LOOKERS:
            return func(*map(_plain, arguments), **kwargs)
        written = arguments[:1] if func.__name__ in ("copyto", "put", "place", "putmask") else ()
        _tell_all((kwargs.get("out"), *written), writes=True)
        _tell_all((*arguments[len(written) :], *kwargs.values()), writes=False)
        return func(*map(_plain, arguments), **{key: _plain(value) for key, value in kwargs.items()})

    @property
    def base(self) -> Any:
        """What pycuda's plain array has: the allocation, and for a view the array it is of."""
        base = super().base
        return base.base if type(base) is np.ndarray else base

    def _place(self, key: Any) -> npt.NDArray[Any]:
        """The part that `key` picks where that is a view, else all of it."""
        keys = key if isinstance(key, tuple) else (key,)
        if not any(each is Ellipsis for each in keys):
            keys = (*keys, Ellipsis)
        view = super().__getitem__(keys)
        return view if _shared(view, self) else self

    def _tell(self, array: npt.NDArray[Any], *, writes: bool) -> None:
        WatchedArray.told(_plain(array), writes)


@contextmanager
def watched_conversions() -> Iterator[None]:
    """Let numpy's conversions, which look at subclasses in C alone, be reads of what they are given."""

    def teller(name: str) -> Callable[..., Any]:
        plain = getattr(np, name)

        def convert(value: Any, *args: Any, **kwargs: Any) -> Any:
            _tell_all((value,), writes=False)
            return plain(value, *args, **kwargs)

        return convert

    with ExitStack() as stack:
        for name in ("array", "asarray", "ascontiguousarray"):
            stack.enter_context(mock.patch.object(np, name, teller(name)))
        yield


def _teller(name: str, writes: bool) -> Callable[..., Any]:
    plain = getattr(np.ndarray, name)

    def method(self: WatchedArray, *args: Any, **kwargs: Any) -> Any:
        self._tell(self, writes=writes)
        _tell_all(kwargs.values(), writes=True)
        return plain(self.view(np.ndarray), *args, **kwargs)

    return method


def _shared(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return np.may_share_memory(_plain(one), _plain(other))


def _plain(value: Any) -> Any:
    if isinstance(value, WatchedArray):
        return value.view(np.ndarray)
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def _tell_all(values: Iterable[Any], *, writes: bool) -> None:
    for value in values:
        if isinstance(value, WatchedArray):
            value._tell(value, writes=writes)
        elif type(value) in (list, tuple):
            _tell_all(value, writes=writes)


for _names, _writes in ((_READERS, False), (_WRITERS, True)):
    for _name in _names:
        if hasattr(np.ndarray, _name):
            setattr(WatchedArray, _name, _teller(_name, _writes))
