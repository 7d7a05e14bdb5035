"""Models that are used again: nobody can tell them from new ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from fedkd.models import spool
from fedkd.models.build import Shape, build_model
from fedkd.models.pool import ModelPool, is_reusable
from fedkd.models.state import copy_state

SHAPE = Shape(4, 1, 8)
STATE = copy_state(build_model("cnn", SHAPE, seed=1))


class Counting(nn.Sequential):
    """A user's class, which might keep anything."""


def test_a_model_comes_back_with_the_state_asked_for_and_nothing_else() -> None:
    model_pool = ModelPool()
    with model_pool.borrow("cnn", SHAPE, STATE, "cpu") as first:
        first.eval()
        first(torch.ones(2, 1, 8, 8)).sum().backward()  # type: ignore[no-untyped-call]
        torch.optim.SGD(first.parameters(), lr=1.0).step()
    with model_pool.borrow("cnn", SHAPE, STATE, "cpu") as again:
        assert again is first
        assert again.training
        assert all(parameter.grad is None for parameter in again.parameters())
        assert all(torch.equal(t, STATE[key]) for key, t in again.state_dict().items())
        with model_pool.borrow("cnn", SHAPE, STATE, "cpu") as other:
            assert other is not again, "it is in use"
    with model_pool.borrow(
        "mlp", SHAPE, copy_state(build_model("mlp", SHAPE, seed=0)), "cpu"
    ) as model:
        assert not isinstance(model[0], nn.Conv2d)


def test_a_model_that_broke_is_not_lent_again() -> None:
    model_pool = ModelPool()
    with pytest.raises(RuntimeError), model_pool.borrow("cnn", SHAPE, STATE, "cpu") as broken:
        raise RuntimeError
    with model_pool.borrow("cnn", SHAPE, STATE, "cpu") as model:
        assert model is not broken


@pytest.mark.parametrize(("keeps_large", "bound"), [(True, 1), (False, 1), (False, 10**9)])
def test_a_pool_may_keep_no_large_model(
    keeps_large: bool, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "LARGE_BYTES", bound)
    model_pool = ModelPool(keeps_large=keeps_large)
    with model_pool.borrow("cnn", SHAPE, STATE, "cpu") as first:
        pass
    with model_pool.borrow("cnn", SHAPE, STATE, "cpu") as again:
        assert (again is first) == (keeps_large or bound > 1)


def buffered(persistent: bool) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    model.register_buffer("steps", torch.zeros(()), persistent=persistent)
    return model


@pytest.mark.parametrize(
    ("model", "may_be_kept"),
    [
        (build_model("cnn", SHAPE, seed=0), True),
        (build_model("resnet8", SHAPE, seed=0), True),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), True),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout()), False),
        (Counting(nn.Linear(2, 2)), False),
        (buffered(persistent=True), True),
        (buffered(persistent=False), False),
    ],
    ids=["cnn", "resnet8", "batch norm", "dropout", "own class", "buffer", "hidden buffer"],
)
def test_only_a_model_that_is_its_state_is_kept(model: nn.Module, may_be_kept: bool) -> None:
    assert is_reusable(model) == may_be_kept


def test_threads_never_share_a_model() -> None:
    model_pool = ModelPool()
    in_use: set[int] = set()

    def use(_: Any) -> None:
        with model_pool.borrow("cnn", SHAPE, STATE, "cpu") as model:
            assert id(model) not in in_use
            in_use.add(id(model))
            model(torch.ones(2, 1, 8, 8))
            in_use.remove(id(model))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(40)))
    assert len(model_pool._free["cnn", SHAPE, "cpu"]) <= 4
