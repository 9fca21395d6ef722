import pytest
import torch

from adazeta import TTAdapterConfig, add_tt_adapters
from adazeta.evaluation import repeat_rows
from adazeta.trunk import SharedTrunk
from tests.tiny_models import tiny_bert_cls, tiny_gpt2, tiny_llama, tiny_opt, tiny_roberta

SMALL = {"rank": 2, "bottleneck": 8, "init": "paper"}
MODELS = [tiny_llama, tiny_gpt2, tiny_opt, tiny_bert_cls, tiny_roberta]


def batch(rows=3, tokens=7, lengths=None):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths or []):
        mask[row, length:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits_of(model):
    return lambda inputs: model(**inputs)[0]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("keep", [False, True])
def test_replay_equals_the_whole_model(make, keep):
    model = add_tt_adapters(make(), TTAdapterConfig(**SMALL, layers="last:1"))
    trunk = SharedTrunk(model, keep=keep)
    assert trunk.depth == 1
    run, inputs = logits_of(model), batch(lengths=[7, 4, 6])
    with torch.no_grad():
        whole = run(inputs)
        for _ in range(2):  # the second time from what was kept
            with trunk.replay(trunk.run(run, inputs)):
                shared = run(inputs)
        real = inputs["attention_mask"].bool() if whole.dim() == 3 else slice(None)
        assert torch.equal(shared[real], whole[real])
        with trunk.replay(trunk.run(run, inputs), times=2):
            twice = run(repeat_rows(inputs, 2))
    # The same numbers in a GEMM of twice as many rows.
    both = torch.cat([whole, whole])
    real = torch.cat([real, real]) if whole.dim() == 3 else real
    torch.testing.assert_close(twice[real], both[real], atol=1e-5, rtol=1e-5)


def test_lower_blocks_run_once():
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL, layers="last:1"))
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    trunk, run, inputs = SharedTrunk(model), logits_of(model), batch()
    hidden = trunk.run(run, inputs)
    assert len(calls) == 1
    for _ in range(3):
        with trunk.replay(hidden):
            run(inputs)
    assert len(calls) == 1 and "forward" not in vars(model.model.layers[0])


def test_kept_states_are_found_again_in_other_batches():
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL, layers="last:1"))
    trunk, run = SharedTrunk(model, keep=True), logits_of(model)
    inputs = batch(lengths=[7, 4, 6])
    with torch.no_grad():
        trunk.run(run, inputs)
        part = {name: value[1:2, :4] if value.dim() == 2 else value[1:2]
                for name, value in inputs.items()}  # fmt: skip
        model.model.layers[0].register_forward_pre_hook(lambda *_: pytest.fail("ran again"))
        hidden = trunk.run(run, part)
    assert hidden.shape[:2] == (1, 4)


def test_left_padding_is_not_kept():
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL, layers="last:1"))
    trunk, inputs = SharedTrunk(model, keep=True), batch()
    inputs["attention_mask"][1, :2] = 0
    trunk.run(logits_of(model), inputs)
    assert not trunk._kept


def test_nothing_is_shared_where_everything_trains():
    model = tiny_llama()
    trunk = SharedTrunk(model)
    assert trunk.depth == 0 and trunk.run(logits_of(model), batch()) is None
    with trunk.replay(None):
        logits_of(model)(batch())


def test_a_trainable_embedding_forbids_sharing():
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL, layers="last:1"))
    model.get_input_embeddings().weight.requires_grad_(True)
    assert SharedTrunk(model).depth == 0


def test_the_model_is_whole_again_after_an_exception():
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL, layers="last:1"))
    trunk, run, inputs = SharedTrunk(model), logits_of(model), batch()
    before = run(inputs)
    with pytest.raises(ZeroDivisionError):
        with trunk.replay(trunk.run(run, inputs)):
            raise ZeroDivisionError
    assert torch.equal(run(inputs), before)


def test_two_forwards_in_one_replay_are_refused():
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(**SMALL, layers="last:1"))
    trunk, run, inputs = SharedTrunk(model), logits_of(model), batch()
    with pytest.raises(RuntimeError, match="share_trunk=False"):
        with trunk.replay(trunk.run(run, inputs)):
            run(inputs)
            run(inputs)
