"""SubZero, LOZO and Sparse-MeZO on whole models: stop and go on, replay, save, and learn."""

import copy

import pytest
import torch
from peft import TaskType, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from adazeta import ZOTrainer, replay
from adazeta.cli import main
from adazeta.directions.reparametrise import PARAMETERS, attached, matrix_of, merge
from adazeta.directions.table import DIRECTIONS, space_for
from adazeta.methods import make_optimizer
from adazeta.optim.adam import ZOAdam
from adazeta.optim.helene import HELENE
from adazeta.optim.sgd import ZOSGD
from adazeta.recording.folder import LOG_NAME
from tests.helpers.runs import arguments, causal_data, crash_after
from tests.helpers.streaming_models import CONFIGS, token_inputs
from tests.helpers.tiny_models import (
    tiny_bart,
    tiny_bert_cls,
    tiny_gpt2,
    tiny_llama,
    tiny_opt,
    tiny_t5,
)

METHODS = {
    "subzero": {"rank": 4, "refresh": 3, "momentum": 0.9},
    "lozo": {"refresh": 2},
    "lozo-m": {"refresh": 3},
    "sparse-mezo": {},
}


def trainer(folder, method, model=None, **options):
    settings = {"method": method, "method_settings": METHODS[method], "learning_rate": 1e-3,
                "max_steps": 7, **options}  # fmt: skip
    return ZOTrainer(
        tiny_llama(layers=1) if model is None else model,
        arguments(folder, **settings),
        train_dataset=causal_data(12),
        eval_dataset=causal_data(4),
    )


def kept(zo):
    return {name: tensor.detach().clone() for name, tensor in zo.zo_optimizer.space.kept.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture(scope="module", params=METHODS)
def whole(request, tmp_path_factory):
    zo = trainer(tmp_path_factory.mktemp("whole"), request.param)
    zo.train()
    return request.param, zo


@pytest.mark.parametrize("save", [{}, {"save_strategy": "steps", "save_steps": 2}])
def test_a_run_goes_on_bit_for_bit_across_a_refresh(tmp_path, whole, save):
    method, expected = whole
    parts = trainer(tmp_path, method, **save)
    crash_after(parts, 5)
    again = trainer(tmp_path, method, **save)
    again.train(resume_from_checkpoint=True)
    assert_same(kept(again), kept(expected))
    for name, state in expected.zo_optimizer.state_dict()["state"].items():
        for key, value in state.items():
            assert torch.equal(again.zo_optimizer.state_dict()["state"][name][key], value)


def test_the_log_replays_the_run_bit_for_bit(whole):
    _, expected = whole
    model = tiny_llama(layers=1)
    optimizer = replay(f"{expected.args.output_dir}/{LOG_NAME}", model)
    assert_same(dict(optimizer.space.kept), kept(expected))


def test_what_is_saved_is_a_plain_model(tmp_path, whole):
    _, zo = whole
    zo.save_model(str(tmp_path))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(5, 17).view(2, 6)
    assert set(plain.state_dict()) == set(tiny_llama(layers=1).state_dict())
    torch.testing.assert_close(plain(ids).logits, zo.model(ids).logits, rtol=1e-4, atol=1e-5)
    assert not torch.equal(plain(ids).logits, tiny_llama(layers=1)(ids).logits)


def test_the_best_checkpoint_comes_back_with_its_bases(tmp_path):
    zo = trainer(tmp_path, "subzero", save_strategy="steps", save_steps=2, eval_strategy="steps",
                 eval_steps=2, load_best_model_at_end=True, learning_rate=0.02,
                 metric_for_best_model="loss", save_total_limit=8)  # fmt: skip
    zo.train()
    assert zo.evaluate()["eval_loss"] == pytest.approx(zo.state.best_metric, rel=1e-5)


def test_the_command_line_replays_to_a_plain_model(tmp_path):
    base = tmp_path / "base"
    tiny_llama(layers=1).save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    zo = trainer(tmp_path / "run", "lozo-m", model)
    zo.train()
    out = tmp_path / "out"
    assert main(["replay", str(tmp_path / "run" / LOG_NAME), "--output", str(out)]) in (0, None)
    zo.save_model(str(tmp_path / "saved"))
    there, here = (AutoModelForCausalLM.from_pretrained(f) for f in (tmp_path / "saved", out))
    assert_same(dict(here.named_parameters()), dict(there.named_parameters()))


@pytest.mark.parametrize("direction", ["subzero", "lozo", "sparse"])
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_opt, tiny_bert_cls, tiny_bart])
def test_every_architecture_computes_as_its_merged_weights(build, direction):
    """Tied embeddings, Conv1D, embeddings that look up otherwise, and norms."""
    model = build()
    ids = torch.randint(5, 60, (2, 6))
    before = model(ids).logits
    settings = {} if direction == "sparse" else {"rank": 3, "refresh": 2}
    space = space_for(model, direction, settings, seed=1)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
    optimizer = ZOSGD(space, lr=1e-3, eps=1e-2, check_eps=False, seed=1)
    for _ in range(3):
        optimizer.step(lambda: model(ids).logits.square().mean())
    trained = model(ids).logits
    names = set(build().state_dict())
    merge(model)
    torch.testing.assert_close(model(ids).logits, trained, rtol=1e-4, atol=1e-5)
    assert set(model.state_dict()) == names and not torch.equal(trained, before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_tied_matrices_have_one_core():
    model = tiny_t5()
    space_for(model, "subzero", {"rank": 3})
    matrices = [p for p in model.parameters() if p.dim() == 2 and not p.requires_grad]
    cores = [found for found in attached(model)]
    assert len({id(p) for p in matrices}) == len(matrices) == len(cores)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("direction", ["subzero", "sparse"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_peft_models_compute_as_their_merged_tensors(name, direction):
    config = copy.deepcopy(CONFIGS[name])
    base = tiny_bert_cls() if config.task_type == TaskType.SEQ_CLS else tiny_llama()
    model = get_peft_model(base, config).eval()
    if name == "ia3" and direction == "subzero":  # its scales are vectors, and lie in no module
        with pytest.raises(ValueError, match="none that is trainable"):
            space_for(model, direction)
        return
    space = space_for(model, direction, {"rank": 2} if direction == "subzero" else {}, seed=1)
    generator = torch.Generator().manual_seed(1)
    for parameter in space.parameters:
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    for found in attached(model):  # LoRA's 3 x 32 is 8 x 12 to SubZero
        if direction == "subzero" and found.module.shape in ((3, 32), (32, 3)):
            assert found.module.view == (8, 12)
    trained = model(**token_inputs())["logits"]
    merge(model)
    torch.testing.assert_close(model(**token_inputs())["logits"], trained, rtol=1e-4, atol=1e-5)


class Quadratic(nn.Module):
    """Half the squared distance of a matrix from a target."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 10, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.register_buffer("target", torch.randn(10, 12))

    def forward(self):
        return 0.5 * (self.linear(torch.eye(12)).mT - self.target).square().sum()


RULES = {
    "sgd": lambda space: ZOSGD(space, lr=4e-3, queries=4, eps=1e-2, check_eps=False),
    "momentum": lambda space: ZOSGD(
        space, lr=4e-4, momentum=0.9, queries=4, eps=1e-2, check_eps=False
    ),  # fmt: skip
    "adam": lambda space: ZOAdam(space, lr=0.03, queries=4, eps=1e-2, check_eps=False),
    "helene": lambda space: HELENE(space, lr=1e-2, queries=4, eps=1e-2, check_eps=False),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("direction", ["subzero", "lozo", "sparse"])
def test_converges_on_a_quadratic(direction, rule):
    problem = Quadratic()
    if direction == "sparse":  # what may not move stays wrong
        settings = {"sparsity": 0.0}
    else:
        settings = {"rank": 4, "refresh": 10}  # a subspace holds 16 of the 120 dimensions
    optimizer = RULES[rule](space_for(problem, direction, settings))
    first = problem().item()
    for _ in range(500):
        optimizer.step(lambda: problem())
    assert problem().item() < 0.3 * first


@pytest.mark.parametrize("method", METHODS)
def test_learns_a_logistic_regression(method):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 10, generator=generator)
    labels = (x @ torch.randn(10, 4, generator=generator)).argmax(1)
    model = nn.Linear(10, 4)
    with torch.no_grad():
        model.weight.normal_(std=0.1)
    settings = {**METHODS[method], **({"sparsity": 0.5} if method == "sparse-mezo" else
                                      {"refresh": 20})}  # fmt: skip
    lr = 0.005 if "momentum" in settings or method == "lozo-m" else 0.05
    optimizer = make_optimizer(model, method, lr=lr, method_settings=settings, eps=1e-2,
                               queries=4, check_eps=False)  # fmt: skip
    first = cross_entropy(model(x), labels)
    for _ in range(300):
        optimizer.step(lambda: cross_entropy(model(x), labels))
    assert cross_entropy(model(x), labels) < 0.75 * first


@pytest.mark.parametrize("method", METHODS)
def test_learns_with_a_transformer(tmp_path, method):
    model = tiny_llama(layers=1)
    zo = trainer(tmp_path, method, model, max_steps=120, queries=2, probe_log=False,
                 learning_rate={"lozo-m": 2e-4, "sparse-mezo": 5e-3}.get(method, 1e-3),
                 diagnostics_steps=0, lr_scheduler_type="constant",
                 method_settings={**METHODS[method], **({} if method == "sparse-mezo" else
                                                        {"refresh": 30})})  # fmt: skip
    first = zo.evaluate()["eval_loss"]
    zo.train()
    assert zo.evaluate()["eval_loss"] < first - 0.1


def test_examples_have_directions_of_their_own(tmp_path):
    options = {"probes": "example", "probes_per_forward": "2", "max_steps": 4}
    zo = trainer(tmp_path, "subzero", method_settings={"rank": 4, "refresh": 2, "vectors": False},
                 **options)  # fmt: skip
    zo.train()
    assert len(zo.zo_optimizer.last) == 4 and zo.zo_optimizer.space.stackable


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_parameters_are_named_so_that_a_log_can_be_read(direction):
    model = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 10))
    matrices = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    space = space_for(model, direction)
    named = [name for name in space.names if not name.endswith("bias")]
    assert [matrix_of(name) for name in named] == matrices
    assert (named == matrices) == (direction == "full")
    assert {found.module.suffix for found in attached(model)} <= set(PARAMETERS)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 0, 2)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_empty_matrix_takes_no_memory(direction, shape):
    model = nn.Linear(12, 9)
    model.empty = nn.Parameter(torch.zeros(shape))
    drawn = DIRECTIONS[direction]
    shapes = [p.shape for p in model.parameters()]
    stated = drawn.trained(shapes, drawn.settings)
    assert stated == sum(p.numel() for p in space_for(model, direction).parameters)
    assert drawn.state_bytes([shape], drawn.settings, 4) == 0
