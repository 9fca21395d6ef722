"""Models whose attention reaches further, or less far, than a chain of full attention does."""

import pytest
import torch
import transformers
from torch.nn import functional

from adazeta import TTAdapterConfig, ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.forward.losses import losses_only
from adazeta.forward.packing import choose_packing, packed
from adazeta.forward.reach import relative_error, roundings, steady_length
from adazeta.forward.suffix import FrozenContext
from adazeta.forward.trunk import SharedTrunk
from adazeta.runs.inference import predict
from adazeta.tasks.prompt import PromptTask
from tests.helpers.tiny_models import VOCABULARY_SIZE, tiny_gpt2, tiny_llama, tiny_tokenizer
from tests.helpers.token_batches import on_last_tokens_only

SIZES = {
    "vocab_size": VOCABULARY_SIZE, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEAD = {"head_dim": 8}
MOE = {"num_local_experts": 2, "num_experts_per_tok": 1}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [3.0, 2.0, 1.5, 1.1]}
LONGROPE = {"rope_type": "longrope", **FACTORS}
RECURRENT = ["linear_attention", "full_attention", "linear_attention"]
LINEAR = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24, "num_experts": 2, "num_experts_per_tok": 1,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
SHARED = ["sliding_attention", "full_attention"] * 2

# Windows and chunks shorter and longer than the prompts, which have 4 to 41 tokens.
SERVED = {
    "llama": ("llama", {}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "phi3-longrope": (
        "phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64},
    ),
    "mistral-6": ("mistral", {"sliding_window": 6}),
    "mistral-20": ("mistral", {"sliding_window": 20}),
    "mistral-100": ("mistral", {"sliding_window": 100}),
    "mixtral": ("mixtral", {"sliding_window": 6, **MOE}),
    "qwen2-mixed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "gemma2": ("gemma2", {"sliding_window": 6, "query_pre_attn_scalar": 8, **HEAD}),
    "gemma3": ("gemma3_text", {"sliding_window": 6, "query_pre_attn_scalar": 8, **HEAD}),
    "gpt_oss": ("gpt_oss", {"sliding_window": 6, **MOE, **HEAD}),
    "cohere2": ("cohere2", {"sliding_window": 6}),
    "llama4-chunks": (
        "llama4_text",
        {"attention_chunk_size": 8, "intermediate_size_mlp": 48, **MOE, **HEAD},
    ),
    "gpt2": ("gpt2", {"n_inner": 48}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("bloom", {}),
    "mpt": ("mpt", {"n_layers": 3, "n_heads": 4, "d_model": 32, "max_seq_len": 128}),
    "falcon-alibi": ("falcon", {"alibi": True}),
    "gpt_neo-local": (
        "gpt_neo",
        {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]],
         "window_size": 6, "num_hidden_layers": None},
    ),
}  # fmt: skip
BOTH_WAYS = {"mistral-6", "gemma3", "llama4-chunks", "opt"}  # eager, and what is chosen by itself

REFUSED = {
    "llama-dynamic": (
        "llama",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16},
    ),
    "phi3-longrope": (
        "phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 16},
    ),
    "mamba": ("mamba", {"state_size": 4}),
    "falcon_h1": (
        "falcon_h1",
        {**MAMBA, "mamba_d_ssm": 32, "mamba_n_heads": 4, **HEAD},
    ),
    "bamba": ("bamba", {**MAMBA, "attn_layer_indices": [1], "mamba_n_groups": 1}),
    "lfm2": ("lfm2", {"block_ff_dim": 48, "full_attn_idxs": [1]}),
    "qwen3_next": ("qwen3_next", {"layer_types": RECURRENT, **LINEAR, **HEAD}),
    "rwkv": ("rwkv", {}),
    "xlnet": (
        "xlnet",
        {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48, "max_position_embeddings": None},
    ),
    "openai-gpt": ("openai-gpt", {}),
    "gemma3n": (
        "gemma3n_text",
        {"sliding_window": 6, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
         "layer_types": SHARED, "vocab_size_per_layer_input": VOCABULARY_SIZE,
         "hidden_size_per_layer_input": 8, "laurel_rank": 4,
         "activation_sparsity_pattern": [0.0] * 4, **HEAD},
    ),
}  # fmt: skip

LENGTHS = [41, 9, 4, 34, 9]


def build(kind, settings, attention=None):
    """A tiny random model of a type; settings of None leave a size out."""
    sizes = {k: v for k, v in {**SIZES, **settings}.items() if v is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **sizes)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def adapted(kind, settings, attention=None, layers=None):
    config = TTAdapterConfig(rank=2, bottleneck=8, init="paper", layers=layers)
    return add_tt_adapters(build(kind, settings, attention), config)


def batch(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(5)
    width = max(lengths)
    ids = torch.randint(5, 100, (len(lengths), width), generator=generator)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids = ids * mask
    if lengths == LENGTHS:
        ids[4] = ids[1]  # a row that is repeated
    return ids, mask


CASES = [
    pytest.param(*case, attention, id=f"{name}-{attention or 'chosen'}")
    for name, case in SERVED.items()
    for attention in ((None, "eager") if name in BOTH_WAYS else (None,))
]


@pytest.mark.filterwarnings("ignore")  # of transformers about single configurations
@pytest.mark.parametrize("layers", [None, "last:1"])
@pytest.mark.parametrize("kind, settings, attention", CASES)
def test_the_suffix_comes_out_as_in_the_whole_prompt(kind, settings, attention, layers, tmp_path):
    model = adapted(kind, settings, attention, layers)
    ids, mask = batch()
    contexts = [
        FrozenContext(model, 3, cache=cache, folder=tmp_path) for cache in ("memory", "disk")
    ]
    found = []
    with torch.no_grad():
        for context in contexts:
            for _ in range(2):  # the second time from what was kept
                with context.inputs(ids, mask) as inputs:
                    found.append(model(**inputs).logits)
        assert all(torch.equal(logits, found[0]) for logits in found[1:])
        on_last_tokens_only(model, 3)
        for row, length in enumerate(LENGTHS):
            expected = model(input_ids=ids[row : row + 1, :length]).logits[0, -3:]
            # The same sums over keys in another order, and padding that is masked.
            torch.testing.assert_close(found[0][row], expected, atol=5e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, settings", REFUSED.values(), ids=REFUSED.keys())
def test_a_model_that_does_not_go_on_from_keys_and_values_is_refused(kind, settings):
    model = adapted(kind, settings)
    context = FrozenContext(model, 3)
    with pytest.raises(ValueError, match=f"this model .{kind}.*adapt='all'") as caught:
        with context.inputs(*batch()):
            pass
    assert "\n" not in str(caught.value)


def pool_context(module, args, output):
    """Let every token see the mean of its row, padding and all: no mask knows of it."""
    hidden = output[0] if isinstance(output, tuple) else output
    pooled = hidden + hidden.mean(1, keepdim=True)
    return (pooled, *output[1:]) if isinstance(output, tuple) else pooled


def test_what_no_cache_shows_is_found_by_comparing():
    model = adapted("llama", {})
    model.model.layers[1].register_forward_hook(pool_context)
    with pytest.raises(ValueError, match="after a kept context are others .*adapt='all'"):
        with FrozenContext(model, 3).inputs(*batch()):
            pass


def test_a_batch_with_a_longer_or_shorter_row_is_compared_again():
    model = adapted("llama", {})
    context = FrozenContext(model, 3)
    whole = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: whole.append(kwargs.get("use_cache")), with_kwargs=True
    )

    def comparisons(lengths):
        whole.clear()
        with context.inputs(*batch(lengths)):
            pass
        return whole.count(False)

    assert comparisons([12, 8]) == 1
    assert comparisons([9, 11]) == comparisons([12, 8]) == 0
    assert comparisons([13, 9]) == comparisons([10, 7]) == 1
    assert comparisons([13, 7]) == 0


def test_comparing_leaves_what_is_kept_and_the_generator_alone():
    model = adapted("mistral", {"sliding_window": 6})
    ids, mask = batch()
    plain, compared = FrozenContext(model, 3), FrozenContext(model, 3)
    expected = plain._examples(ids, mask)
    state = torch.get_rng_state()
    with compared.inputs(ids, mask):
        pass
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(expected, compared._examples(ids, mask), strict=True):
        assert torch.equal(one.cache, other.cache) and torch.equal(one.hidden, other.hidden)


def test_low_precision_is_not_taken_for_another_model():
    for dtype in (torch.bfloat16, torch.float16):
        model = adapted("mistral", {"sliding_window": 6}).to(dtype)
        ids, mask = batch()
        with torch.no_grad(), FrozenContext(model, 3).inputs(ids, mask) as inputs:
            assert model(**inputs).logits.isfinite().all()


def task_and_records():
    task = PromptTask(
        tiny_tokenizer(), "{text} it was", ["terrible", "great"], adapt="suffix", max_length=24
    )
    texts = ["a dull film", "funny", "the story and the cast and the music was very good", "plot"]
    # One is far longer than any window here; the template cuts it, and keeps its own tokens.
    texts.append("the cat and the dog " * 30)
    return task, [{"text": text, "label": k % 2} for k, text in enumerate(texts)]


def trainer_of(model, task, records, folder, **options):
    arguments = ZOTrainingArguments(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=5, eps="0.01",
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=1,
        **options,
    )  # fmt: skip
    examples = task.encode_all(records)
    return ZOTrainer(
        model, arguments, loss_fn=task.losses, train_dataset=examples, eval_dataset=examples,
        data_collator=task.collate_mixed,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mamba", "falcon_h1"])
def test_training_and_evaluation_refuse_before_any_update(name, tmp_path):
    task, records = task_and_records()
    model = adapted(*REFUSED[name])
    trainer = trainer_of(model, task, records, tmp_path)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="adapt='all'"):
        trainer.train()
    with pytest.raises(ValueError, match="adapt='all'"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="adapt='all'"):
        predict(model, task, records)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_predictions_with_a_window_are_those_of_the_plain_model():
    task, records = task_and_records()
    plain = PromptTask(tiny_tokenizer(), "{text} it was", ["terrible", "great"], max_length=24)
    assert max(len(task.encode(record)["input_ids"]) for record in records) == 24
    model = build("mistral", {"sliding_window": 6})
    expected = predict(model, plain, records)
    add_tt_adapters(model, TTAdapterConfig(rank=2, bottleneck=8))  # init="zero": no change
    # The same sums over keys in another order.
    torch.testing.assert_close(predict(model, task, records), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 5])
def test_a_trunk_is_not_shared_under_a_context(size, tmp_path):
    found = []
    for share in (True, False):
        task, records = task_and_records()
        config = TTAdapterConfig(rank=2, bottleneck=8, init="paper", layers="last:1")
        model = add_tt_adapters(tiny_llama(layers=3), config)
        trainer = trainer_of(model, task, records, tmp_path / str(share), share_trunk=share)
        trainer.args.per_device_train_batch_size = size
        trainer.train()
        found.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert found[0] == found[1]


def last_trains(model):
    model.requires_grad_(False)
    list(model.model.layers)[-1].requires_grad_(True)
    return model


def logits_of(model):
    return lambda inputs: model(**inputs, use_cache=False).logits


def test_states_that_depend_on_padding_are_not_kept(caplog):
    model = last_trains(build("llama", {}))
    model.model.layers[0].register_forward_hook(pool_context)
    ids, mask = batch([12, 5, 9])
    inputs = {"input_ids": ids, "attention_mask": mask}
    trunk, run = SharedTrunk(model, cache="memory"), logits_of(model)
    with torch.no_grad():
        expected = run(inputs)
        for _ in range(2):
            with trunk.replay(trunk.run(run, inputs)):
                assert torch.equal(run(inputs), expected)
    assert trunk.depth == 2 and trunk.cache is None
    assert "is not kept: a row of 5 tokens" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_states_are_kept_up_to_the_length_at_which_frequencies_change():
    settings = {"rope_scaling": LONGROPE, "original_max_position_embeddings": 24}
    model = last_trains(build("phi3", settings))
    trunk, run = SharedTrunk(model, cache="memory"), logits_of(model)
    assert steady_length(model) == 24
    for lengths in ([20, 9, 5], [41, 9, 5]):  # a multiple of 32 would already be too wide
        ids, mask = batch(lengths)
        inputs = {"input_ids": ids, "attention_mask": mask}
        with torch.no_grad():
            with trunk.replay(trunk.run(run, inputs)):
                found = run(inputs)
            where = mask.bool()
            # Computed at another width: the same sums in another order.
            torch.testing.assert_close(found[where], run(inputs)[where], atol=5e-6, rtol=1e-4)
    assert trunk.depth == 2 and trunk.cache is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "mistral-6", "mistral-20", "gemma3", "llama4-chunks"])
def test_texts_in_one_row_are_kept_apart_in_windows_and_chunks(name):
    model, known = build(*SERVED[name]), None

    def losses(inputs):
        return losses_only(model, inputs)

    # The first batch, which decides, lies within one window or chunk; the later ones do not.
    for lengths in ([5, 3, 2, 2, 3, 4], LENGTHS, [70, 9, 14, 13, 3, 6, 7]):
        ids, mask = batch(lengths)
        labels = torch.where(mask.bool(), ids, -100)
        inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        packing, known = choose_packing(True, losses, inputs, lambda: torch.float32, known)
        assert packing is not None
        with torch.no_grad():
            expected = losses(inputs)
            with packed(packing):
                # The same sums over keys in another order.
                torch.testing.assert_close(losses(inputs), expected, atol=2e-6, rtol=2e-6)


def test_positions_of_other_models_mean_the_same_at_every_length():
    assert steady_length(tiny_gpt2()) is None and steady_length(tiny_llama()) is None


def test_errors_are_relative_to_the_spread_of_a_row():
    expected = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert relative_error(expected + 100, expected) < 1e-5  # changes no probability
    found = functional.pad(expected[:, 1:], (1, 0))
    assert relative_error(found, expected) > roundings(expected)
    never = torch.full_like(expected[:, :5], -torch.inf)
    found, expected = (torch.cat([never, x], dim=-1) for x in (found, expected))
    assert relative_error(found, expected) > roundings(expected)
    assert relative_error(torch.full_like(expected, torch.nan), expected) == float("inf")


def test_adapters_outside_of_the_blocks_are_refused():
    model = tiny_llama()
    with pytest.raises(ValueError, match="llama.*no adapter lies in one of its blocks"):
        FrozenContext(model, 2)
