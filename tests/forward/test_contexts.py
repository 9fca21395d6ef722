import gc
import weakref

import pytest
import torch

from adazeta import TTAdapterConfig, ZOTrainer, ZOTrainingArguments, add_tt_adapters
from adazeta.adapters.attach import remove_adapters
from adazeta.forward.contexts import context_of, keep_contexts
from adazeta.recording.folder import LOG_NAME
from adazeta.recording.probe_log import read_log
from adazeta.tasks.prompt import PromptTask
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

RECORDS = [
    {"text": "a dull film", "label": 0},
    {"text": "the story and the cast was very good", "label": 1},
    {"text": "funny", "label": 1},
]


def adapted(layers="last:1", init="paper"):
    config = TTAdapterConfig(rank=2, bottleneck=8, init=init, layers=layers)
    return add_tt_adapters(tiny_llama(layers=3), config).eval()


def new_task():
    return PromptTask(tiny_tokenizer(), "{text} it was", ["terrible", "great"], adapt="suffix")


def batch_of(task):
    return task.collate([task.encode(record) for record in RECORDS])


def logits_of(task, model, inputs):
    """Compute logits after a first time, which may compute more of them at once and round so."""
    task.logits(model, inputs)
    return task.logits(model, inputs)


def count_whole_forwards(model):
    """Count the calls of the first block, which an evaluation of the suffix alone skips."""
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    return calls


def train(model, folder, **options):
    task = new_task()
    arguments = ZOTrainingArguments(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=3, eps="0.01",
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=1,
        **options,
    )  # fmt: skip
    trainer = ZOTrainer(
        model, arguments, loss_fn=task.losses, train_dataset=task.encode_all(RECORDS),
        data_collator=task.collate_mixed,
    )  # fmt: skip
    trainer.train()
    return trainer


@torch.no_grad()
def test_tasks_share_what_is_known_of_a_model():
    model, task, other = adapted(), new_task(), new_task()
    first = logits_of(task, model, batch_of(task))
    calls = count_whole_forwards(model)
    assert torch.equal(other.logits(model, batch_of(other)), first)
    assert not calls and context_of(model, task.suffix) is context_of(model, other.suffix)


@torch.no_grad()
def test_contexts_go_with_their_model():
    model, task = adapted(), new_task()
    task.losses(model, batch_of(task))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@torch.no_grad()
def test_other_adapters_and_other_weights_have_other_contexts():
    model, task = adapted("last:1"), new_task()
    inputs = batch_of(task)
    logits_of(task, model, inputs)
    known = context_of(model, task.suffix)
    assert context_of(model, task.suffix) is known
    for parameter in next(iter(model.model.layers[2].children())).parameters():
        if parameter.requires_grad:
            parameter.add_(1)  # of an adapter: contexts do not depend on it
    assert context_of(model, task.suffix) is known
    remove_adapters(model)
    add_tt_adapters(model, TTAdapterConfig(rank=2, bottleneck=8, init="paper", layers="last:2"))
    found, fresh = task.logits(model, inputs), adapted("last:2")
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(found, logits_of(new_task(), fresh, inputs))
    for each in (model, fresh):
        each.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    changed = task.logits(model, inputs)
    last = adapted("last:2")
    last.load_state_dict(model.state_dict())
    assert torch.equal(changed, logits_of(new_task(), last, inputs))
    assert not torch.equal(changed, found)


@torch.no_grad()
def test_contexts_are_kept_where_the_caller_says(tmp_path):
    model, task = adapted(), new_task()
    whole = batch_of(task)
    parts = [{name: x[k : k + 1] for name, x in whole.items()} for k in range(len(RECORDS))]
    expected = [logits_of(task, model, part) for part in parts]
    for cache, runs in (("none", True), ("memory", False), ("disk", False)):
        keep_contexts(model, cache, folder=tmp_path)
        for part in parts:
            task.logits(model, part)
        calls = count_whole_forwards(model)
        found = [task.logits(model, part) for part in parts]
        assert all(map(torch.equal, found, expected)) and bool(calls) == runs


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_trainer_keeps_contexts_as_its_settings_say(cache, tmp_path):
    model = adapted()
    train(model, tmp_path, cache_trunk=cache)
    task = new_task()
    calls = count_whole_forwards(model)
    for record in RECORDS:
        with torch.no_grad():
            task.logits(model, task.collate([task.encode(record)]))
        other = task.collate([task.encode({"text": "plot and cast", "label": 0})])
        if cache == "none":
            with torch.no_grad():
                task.logits(model, other)
    assert bool(calls) == (cache == "none")


def test_a_loss_that_skips_the_lower_blocks_itself_is_no_finding(tmp_path, caplog):
    with caplog.at_level("INFO", logger="adazeta.forward.trunk"):
        found = [
            train(adapted(), tmp_path / str(share), share_trunk=share) for share in (True, False)
        ]
    assert "not shared" not in caplog.text
    one, other = (trainer.zo_optimizer.estimator for trainer in found)
    assert "shared trunk" not in one.state_dict()["shortcuts"]
    assert one.state_dict() == other.state_dict()
    logs = [read_log(tmp_path / str(share) / LOG_NAME) for share in (True, False)]
    assert list(logs[0].records()) == list(logs[1].records())
