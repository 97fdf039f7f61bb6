"""Batches of a model's inputs: what counts as one, which are refused, and a hash of the numbers in them.

A batch is a tensor, a tuple of positional arguments, or a dict of keyword arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from operator import length_hint
from typing import Any

import torch
from torch import Tensor

__all__ = ["GIVE", "Batches", "arguments_of", "data_hash", "listed_batches", "refuse_single", "tensors_in"]

GIVE = (
    "give an iterable of batches, each a tensor, a tuple or a dict (an iterator that was gone through before is empty the "
    "second time)"
)
"""What to do where there are none."""


def listed_batches(batches: Iterable[Any], argument: str = "batches") -> list[Any]:
    """Return batches as a list, which can be gone through again and again; as `Batches`, it refuses what is no batch."""
    refuse_single(batches, argument)
    return list(_checked(batches, argument))


class Batches:
    """Batches that are checked, and hashed, one by one as they are gone through: none has to stay in memory.

    Parameters
    ----------
    batches : iterable
        Each a tensor, a tuple of positional arguments, or a dict of keyword arguments.
    argument : str
        What it is called where it is refused.

    Raises
    ------
    TypeError
        If it is a single batch, or no iterable, or a batch is not a tensor, a tuple or a dict.
    ValueError
        If there are none, or a tensor holds NaN. (Infinities are allowed: masks hold them.)

    Examples
    --------
    >>> import torch
    >>> from qlab.model.batches import Batches, data_hash
    >>> batches = Batches(torch.ones(2) for _ in range(3))
    >>> len(list(batches)), batches.hash == data_hash([torch.ones(6)])
    (3, True)
    """

    def __init__(self, batches: Iterable[Any], argument: str = "batches") -> None:
        refuse_single(batches, argument)
        self.batches, self.argument, self._digest = batches, argument, hashlib.sha256()

    def __iter__(self) -> Iterator[Any]:
        self._digest = hashlib.sha256()
        for batch in _checked(self.batches, self.argument):
            _add_to(self._digest, batch)
            yield batch

    def __length_hint__(self) -> int:
        return length_hint(self.batches, 0)

    def exhaust(self) -> None:
        """Go through all batches, for their hash alone."""
        for _ in self:
            pass

    @property
    def hash(self) -> str:
        """The `data_hash` of what was gone through."""
        return self._digest.hexdigest()


def data_hash(batches: Iterable[Any]) -> str:
    """Return the SHA-256 of the bytes of all tensors of all batches, in order.

    Parameters
    ----------
    batches : iterable
        As in `Batches`; one that can be gone through again, such as a list. What counts are tensors, wherever in a
        batch they are, and nothing else of it.

    Returns
    -------
    digest : str
        64 hexadecimal digits. Exact: the same on every machine of the same byte order.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.batches import data_hash
    >>> data_hash([torch.zeros(2)]) == data_hash([{"x": torch.zeros(1)}, (torch.zeros(1),)])
    True
    """
    digest = hashlib.sha256()
    for batch in batches:
        _add_to(digest, batch)
    return digest.hexdigest()


def arguments_of(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the positional and the keyword arguments that a batch stands for; a TypeError if it is none."""
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, tuple):
        return batch, {}
    if isinstance(batch, Mapping):
        return (), batch
    raise TypeError(
        f"a batch is a tensor, a tuple of positional arguments or a dict of keyword arguments, not {type(batch).__name__}; "
        "of a loader of (x, label), give ((x,) for x, label in loader)"
    )


def tensors_in(value: Any, inside: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """Go through the tensors in tuples, lists and dicts in each other, in order; through what holds itself once."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, Mapping)) and id(value) not in inside:
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(part, (*inside, id(value)))


def refuse_single(batches: Any, argument: str) -> None:
    """Raise a TypeError if what should be batches is one, or nothing that can be gone through."""
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"{argument} is an iterable of batches, not a single {type(batches).__name__}; put it into a list: [batch]"
        )


# --- inside ----------------------------------------------------------------------------------------------------------
def _checked(batches: Iterable[Any], argument: str) -> Iterator[Any]:
    number = -1
    for number, batch in enumerate(batches):
        if wrong := sum(int(part.isnan().sum()) for part in _parts(batch)):
            remedy = "clean the batches, as with torch.nan_to_num"
            raise ValueError(f"{argument}: batch {number} holds {wrong} NaN; {remedy}")
        yield batch
    if number < 0:
        raise ValueError(f"{argument} is empty; {GIVE}")


def _parts(batch: Any) -> Iterator[Tensor]:
    """The tensors in a batch; of a sparse one its indices and its values."""
    for x in tensors_in(arguments_of(batch)):
        if x.layout == torch.strided:
            yield x
        else:
            coordinates = x.to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
            yield from (coordinates.indices(), coordinates.values())


def _add_to(digest: Any, batch: Any) -> None:
    for part in _parts(batch):
        digest.update(part.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
