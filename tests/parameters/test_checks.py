"""What is refused of a model's parameters, when a space is made and at every estimate."""

import copy
import pickle

import pytest
import torch
from torch import nn

from adazeta import ZOSGD, ParameterSpace


def loss_of(model):
    return lambda: model(torch.ones(2, 3)).square().mean()


@pytest.mark.parametrize("perturbation", ["buffer", "streamed"])
def test_what_is_frozen_may_not_lie_in_a_trained_parameters_memory(perturbation):
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    shared = model["embedding"].weight.data
    model["head"].weight = nn.Parameter(shared, requires_grad=False)
    with pytest.raises(ValueError, match=r"'head.weight' is frozen and lies in the memory of 'emb"):
        ParameterSpace(model, perturbation=perturbation)
    model["head"].weight = nn.Parameter(shared[1:].clone(), requires_grad=False)
    model.register_buffer("seen", shared[2:])
    with pytest.raises(ValueError, match="'seen' is frozen"):
        ParameterSpace(model, perturbation=perturbation)
    model.seen = shared.clone()
    ParameterSpace(model, perturbation=perturbation)


def test_parts_of_one_memory_that_do_not_overlap_are_fine():
    whole = torch.arange(12.0)
    model = nn.ParameterList([whole[:4], whole[4:8], whole[8:]])
    model[1].requires_grad_(False)
    space = ParameterSpace(model)
    assert space.names == ["0", "2"]
    assert [p.tolist() for p in model] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_frozen_tensors_without_memory_of_their_own_are_left_alone():
    model = nn.Linear(3, 3)
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("later", torch.empty(3, device="meta"))
    model.register_buffer("none", torch.empty(0))
    assert ParameterSpace(model).names == ["weight", "bias"]


def test_an_overlap_behind_a_shorter_parameter_is_found():
    whole = torch.arange(12.0)
    with pytest.raises(ValueError, match="share memory"):
        ParameterSpace(nn.ParameterList([whole[:10], whole[2:4], whole[8:]]))


@pytest.mark.parametrize("perturbation", ["buffer", "streamed"])
def test_a_replaced_parameter_is_refused(perturbation):
    model = nn.Linear(3, 3)
    optimizer = ZOSGD(model, lr=1.0, eps=1e-2, check_eps=False, perturbation=perturbation)
    optimizer.step(loss_of(model))
    values = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(values)
    optimizer.step(loss_of(model))
    model.load_state_dict(values, assign=True)
    with pytest.raises(RuntimeError, match=r"no longer holds the parameter 'weight'.*assign"):
        optimizer.step(loss_of(model))
    assert torch.equal(model.weight, values["weight"])


@pytest.mark.parametrize("perturbation", ["buffer", "in_place"])
@pytest.mark.parametrize("change", ["grown", "pruned", "in place"])
def test_a_parameter_of_another_shape_is_refused(perturbation, change):
    model = nn.ParameterList([torch.arange(4.0), torch.arange(4.0) + 100])
    optimizer = ZOSGD(
        nn.ModuleList([model]), lr=1.0, eps=1e-2, check_eps=False, perturbation=perturbation
    )
    other = {
        "grown": torch.arange(8.0), "pruned": torch.arange(2.0), "in place": model[0].data[:2]
    }[change]  # fmt: skip
    model[0].data = other
    with pytest.raises(ValueError, match=r"'0.0' has shape \(\d,\) now and had \(4,\)"):
        optimizer.step(lambda: model[0].sum() + model[1].sum())
    assert torch.equal(model[0], other) and torch.equal(model[1], torch.arange(4.0) + 100)


def test_a_parameter_that_looks_at_its_memory_otherwise_is_laid_out_anew():
    model = nn.Linear(3, 3)
    optimizer = ZOSGD(model, lr=0.0, eps=1e-2, check_eps=False, perturbation="buffer")
    model.weight.data = model.weight.data.t()
    expected = model.weight.detach().clone()
    optimizer.step(loss_of(model))
    assert torch.equal(model.weight, expected) and model.weight.is_contiguous()


def test_a_group_of_others_is_refused():
    own, other = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    other.requires_grad_(False)
    for groups in ([own, other], [{"params": [own]}, {"params": [other], "lr": 10.0}]):
        with pytest.raises(ValueError, match="1 parameter.* not among the 1 that this optimizer"):
            ZOSGD(groups, lr=1.0, eps=1e-2)
    optimizer = ZOSGD([own], lr=1.0, eps=1e-2, check_eps=False)
    other.requires_grad_(True)
    for given in (other, [other]):
        with pytest.raises(ValueError, match="not among"):
            optimizer.add_param_group({"params": given})
    with pytest.raises(ValueError, match="more than one"):
        optimizer.add_param_group({"params": own})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_optimizer_is_not_copied_without_its_model(take):
    with pytest.raises(TypeError, match="ZOSGD belongs to its model"):
        take(ZOSGD(nn.Linear(3, 3), lr=1.0, eps=1e-2))
