import copy

import pytest
import torch
from torch import Tensor, nn

from adazeta import ParameterSpace
from adazeta.forward.logits import candidate_logits
from adazeta.kernels import add_noise_
from adazeta.parameters.streamed import StreamedPerturbation
from tests.helpers import tiny_models
from tests.helpers.bits import assert_same_bits, bits, same_bits
from tests.helpers.streaming_models import (
    TOYS,
    TRANSFORMERS,
    BorrowedByChild,
    BorrowedWeight,
    Toy,
    inputs_of,
    logits_of,
)

pytestmark = pytest.mark.usefixtures("poisoned_empty")


def streamed(model: nn.Module, **options) -> ParameterSpace:
    return ParameterSpace(model, perturbation="streamed", **options)


def twin_of(model: nn.Module, space: ParameterSpace, seed: int, scale: float) -> nn.Module:
    """A copy of the model whose parameters were perturbed by the noise op."""
    twin = copy.deepcopy(model)
    for name, offset in zip(space.names, space.offsets, strict=True):
        tensor = twin.get_parameter(name).data
        noise = {"offsets": [offset], "distribution": space.distribution}
        add_noise_([tensor], [seed], [scale], **noise)
    return twin


@torch.no_grad()
def assert_streams(model: nn.Module, space: ParameterSpace, run, evaluations: int = 2) -> None:
    """Streamed evaluations give the bits of a perturbed copy, and leave the parameters alone."""
    before, homes = bits(model), [p.data_ptr() for p in model.parameters()]
    for seed, scale in [(3, 0.01), (4, -0.5), (3, 0.02)][:evaluations]:
        expected = run(twin_of(model, space, seed, scale))
        with space.perturbed(seed, scale):
            result = run(model)
        assert result.isfinite().all() and not torch.equal(result, run(model))
        assert same_bits(result, expected)
        assert_same_bits(model, before)
        assert [p.data_ptr() for p in model.parameters()] == homes


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformers_model_streams_bit_for_bit(name):
    model = TRANSFORMERS[name]()
    assert_streams(model, streamed(model), logits_of)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_half_precision_weights_are_perturbed_in_float32(name, dtype):
    model = TRANSFORMERS[name]().to(dtype)
    assert_streams(model, streamed(model, distribution="rademacher"), logits_of)


@pytest.mark.parametrize("kind", TOYS)
def test_unusual_reads(kind):
    model = kind().eval()
    assert_streams(model, streamed(model), lambda module: module(), evaluations=3)


def test_who_reads_a_weight_of_another_module_is_remembered():
    for kind, reader in [(BorrowedWeight, ""), (BorrowedByChild, "head")]:
        model = kind()
        space = streamed(model)
        direct = space.strategy
        assert isinstance(direct, StreamedPerturbation)
        with torch.no_grad():
            for _ in range(2):
                with space.perturbed(1, 0.1):
                    model()
        assert direct.borrowed == ["embed.weight"]
        assert direct._hosts[id(model.get_submodule(reader))] == [model.embed.weight]


def test_the_loss_function_may_read_parameters_itself():
    model = tiny_models.tiny_llama()

    def run(module: nn.Module) -> Tensor:
        penalty = sum(p.square().sum() for p in module.parameters())
        embedding = module.get_input_embeddings().weight
        return logits_of(module).mean() + penalty + embedding.data[3].norm()

    assert_streams(model, streamed(model), run, evaluations=3)


def test_an_alias_made_beforehand_is_refused():
    model = BorrowedWeight()
    space, kept = streamed(model), model.embed.weight.data[2:]
    before = bits(model)
    with torch.no_grad(), pytest.raises(RuntimeError, match="'embed.weight' through a tensor"):
        with space.perturbed(1, 0.1):
            model.embed(torch.tensor([1])) @ kept[0]
    assert_same_bits(model, before)


def test_a_kept_view_of_the_scratch_is_refused():
    class Keeps(Toy):
        def forward(self) -> Tensor:
            hidden = self.hidden()
            self.embed.register_forward_hook(keep)
            self.embed(torch.tensor([0]))
            return hidden.mean() + kept[0].mean()

    kept = []

    def keep(module: nn.Module, args, output) -> None:
        # The hooks of the module itself run after its weights were restored.
        kept.append(stale[0])

    model = Keeps()
    space = streamed(model)
    stale = []
    model.embed.register_forward_pre_hook(lambda module, args: stale.append(module.weight.data[1:]))
    with torch.no_grad(), pytest.raises(RuntimeError, match="after that module has ended"):
        with space.perturbed(1, 0.1):
            model()


class Stop(Exception):
    pass


def _raise(error: type[BaseException]):
    def hook(*args) -> None:
        raise error

    return hook


@pytest.mark.parametrize(
    "name, error",
    [
        ("opt", Stop),
        ("mixtral", Stop),
        ("whisper", Stop),
        ("vit", Stop),
        ("vit", KeyboardInterrupt),
    ],
)
def test_an_exception_at_any_module_leaves_every_bit(name, error):
    model = TRANSFORMERS[name]()
    space = streamed(model)
    before, stopped = bits(model), 0
    with torch.no_grad(), space.perturbed(7, 0.1):
        expected = logits_of(model)
    for module in list(model.modules()):
        # When the module's own hooks run, its weights are perturbed.
        handle = module.register_forward_pre_hook(_raise(error))
        try:
            with torch.no_grad(), space.perturbed(7, 0.1):
                logits_of(model)
        except error:
            stopped += 1
        handle.remove()
        assert_same_bits(model, before)
    assert stopped > 20
    with torch.no_grad(), space.perturbed(7, 0.1):
        assert same_bits(logits_of(model), expected)


def test_an_exception_that_the_model_catches_restores_the_module():
    class Catches(Toy):
        def forward(self) -> Tensor:
            try:
                self.embed(torch.tensor([99]))
            except IndexError:
                homes.append(self.embed.weight.data_ptr())
            return self.hidden().mean()

    model, homes = Catches(), []
    assert_streams(model, streamed(model), lambda module: module(), evaluations=3)
    assert homes.count(model.embed.weight.data_ptr()) == 6  # the rest are of the copies


def test_the_scratch_is_as_large_as_the_largest_module():
    model = tiny_models.tiny_opt()
    space = streamed(model)
    direct = space.strategy
    assert isinstance(direct, StreamedPerturbation) and direct.scratch_bytes == 0
    with torch.no_grad():
        for seed in range(3):
            with space.perturbed(seed, 0.1):
                logits_of(model)
    largest = max(
        sum(-(-p.numel() * 4 // 256) * 256 for p in module.parameters(recurse=False))
        for module in model.modules()
    )
    assert direct.scratch_bytes == largest


def test_only_the_rows_that_are_looked_up_are_perturbed(monkeypatch):
    model = tiny_models.tiny_llama()
    written = []

    def counting(tensors, *args, **kwargs):
        written.append(sum(tensor.numel() for tensor in tensors))
        return add_noise_(tensors, *args, **kwargs)

    monkeypatch.setattr("adazeta.parameters.streamed.add_noise_", counting)
    space = streamed(model)
    inputs = inputs_of(model)
    with torch.no_grad(), space.perturbed(1, 0.1):
        model.model(**inputs)
    assert written[0] == inputs["input_ids"].unique().numel() * 32


def test_rows_out_of_range_are_the_models_to_report():
    model = tiny_models.tiny_llama()
    before = bits(model)
    for wrong in (-1, 112):
        with pytest.raises(IndexError), torch.no_grad(), streamed(model).perturbed(1, 0.1):
            model(input_ids=torch.tensor([[5, wrong]]))
        assert_same_bits(model, before)
    with torch.no_grad(), streamed(model).perturbed(1, 0.1):
        assert model.model.embed_tokens(torch.zeros(0, dtype=torch.int64)).shape == (0, 32)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_candidate_logits(name):
    model = TRANSFORMERS[name]()
    inputs = {k: v for k, v in inputs_of(model).items() if k != "use_cache"}
    positions, candidates = torch.tensor([4, 6, 6]), torch.tensor([20, 9, 21])

    def run(module: nn.Module) -> Tensor:
        return candidate_logits(module, inputs, positions, candidates)

    assert_streams(model, streamed(model), run)


def test_a_subset_of_the_parameters():
    model = tiny_models.tiny_gpt2().requires_grad_(False)
    model.transformer.wte.requires_grad_(True)  # tied to the head
    model.transformer.h[1].ln_2.requires_grad_(True)
    space = streamed(model)
    assert len(space.names) == 3
    assert_streams(model, space, logits_of)


def test_works_under_inference_mode():
    model = tiny_models.tiny_llama()
    space = streamed(model)
    expected = logits_of(twin_of(model, space, 2, 0.1))
    for mode in (torch.inference_mode, torch.no_grad):
        with space.perturbed(2, 0.1), mode():
            assert same_bits(logits_of(model), expected.detach())


def test_follows_a_model_that_was_converted():
    model = tiny_models.tiny_llama()
    space = streamed(model)
    assert_streams(model, space, logits_of)
    model.to(torch.bfloat16)
    assert_streams(model, space, logits_of)


def test_one_evaluation_at_a_time():
    model = Toy()
    space = streamed(model)
    with space.perturbed(1, 0.1):
        with pytest.raises(RuntimeError, match="cannot contain another"):
            with space.perturbed(2, 0.1):
                pass


def test_what_cannot_be_streamed():
    with pytest.raises(ValueError, match="from the model, not from its parameters"):
        ParameterSpace(Toy().named_parameters(), perturbation="streamed")
    holder = nn.ModuleDict({"list": nn.ParameterList([torch.zeros(3)])})
    with pytest.raises(ValueError, match="'list.0' belongs to no module"):
        streamed(holder)
    model = BorrowedWeight()
    model._compiled_call_impl = model._call_impl  # what model.compile() sets
    with pytest.raises(ValueError, match="do not compile"):
        streamed(model)


def test_candidate_logits_perturb_the_heads_rows_of_the_candidates_only(monkeypatch):
    model = tiny_models.tiny_llama()
    written = []

    def counting(tensors, *args, **kwargs):
        written.append(sum(tensor.numel() for tensor in tensors))
        return add_noise_(tensors, *args, **kwargs)

    monkeypatch.setattr("adazeta.parameters.streamed.add_noise_", counting)
    inputs = {k: v for k, v in inputs_of(model).items() if k != "use_cache"}
    with torch.no_grad(), streamed(model).perturbed(1, 0.1):
        candidate_logits(model, inputs, torch.tensor([4, 6, 6]), torch.tensor([20, 9, 21]))
    assert written[-1] == 3 * 32
