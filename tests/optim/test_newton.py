import json

import pytest
import torch
from torch.nn import functional

from adazeta import TTAdapterConfig, ZOTrainer, ZOTrainingArguments, add_tt_adapters, replay
from adazeta.adapters.attached import attached_adapters
from adazeta.adapters.files import save_pretrained
from adazeta.adapters.informed import InformedAdapter, inform
from adazeta.adapters.loading import from_pretrained
from adazeta.cli import main
from adazeta.optim.newton import ZONewton
from adazeta.recording.identity import fingerprint_of_state
from adazeta.recording.probe_log import read_log
from adazeta.runs.inference import load_task, load_trained, predict
from adazeta.tasks.prompt import PromptTask
from tests.helpers.bits import assert_same_bits, bits
from tests.helpers.tiny_models import tiny_llama, tiny_tokenizer

WORDS = {"bad": "terrible", "good": "great", "so": "boring"}
TEXTS = {
    "bad": ["a bad film", "the awful script", "a dull story and a bad cast", "it is awful"],
    "good": ["a wonderful film", "the funny script", "a bright story, a good cast", "it is good"],
    "so": ["a film", "the script", "a story and a cast", "it is on", "maybe"],
}
RECORDS = [{"text": text, "label": label} for label, texts in TEXTS.items() for text in texts]


def informed(layers=None, words=WORDS, hidden=32):
    """A model whose output embedding tells the words apart, with adapters that know the task."""
    task = PromptTask(tiny_tokenizer(), "{text} it was", words, adapt="last")
    model = tiny_llama(hidden=hidden, layers=3)
    config = TTAdapterConfig(form="informed", components=12, answers=len(words) - 1, layers=layers)
    add_tt_adapters(model, config)
    batch = task.collate(task.encode_all(RECORDS[: 4 * len(words)]))
    rows = model.get_output_embeddings().weight[task.candidates]
    adapters = [adapter for _, adapter in attached_adapters(model)]
    assert inform(adapters, lambda batch: task.logits(model, batch), [batch], rows) == 1
    return task, model, batch


def trained(folder, losses=None, **options):
    task, model, _ = informed([1, 2])
    arguments = {
        "output_dir": str(folder), "method": "newton", "num_train_epochs": 3,
        "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "seed": 3,
    }  # fmt: skip
    return ZOTrainer(
        model, ZOTrainingArguments(**{**arguments, **options}), loss_fn=losses or task.losses,
        train_dataset=task.encode_all(RECORDS), data_collator=task.collate_mixed,
    )  # fmt: skip


def test_an_informed_adapter_starts_as_the_identity():
    task, model, batch = informed()
    whole = task.logits(tiny_llama(layers=3), batch)
    # The context and the last token are two forwards here, and one there.
    assert torch.allclose(task.logits(model, batch), whole, atol=1e-5)


def test_bases_are_principal_components_and_directions_of_the_answers():
    _, model, _ = informed()
    ((name, adapter),) = attached_adapters(model)
    assert name == "model.layers.2.tt_adapter" and isinstance(adapter, InformedAdapter)
    assert len(adapter.inputs) == 1 + len(adapter.readers)
    for inputs in adapter.inputs.double():
        gram = inputs.T @ inputs
        assert torch.allclose(gram, torch.diag(gram.diag()), atol=1e-6 * gram.diag().max())
    assert adapter.outputs.shape == (2, 32)
    lengths = adapter.outputs.norm(dim=1)
    assert torch.allclose(lengths, lengths[:1].expand(2))


@pytest.mark.parametrize("one_sided", [True, False])
@pytest.mark.parametrize("together", [1, 3])
def test_responses_are_the_derivatives_of_the_logits(one_sided, together):
    task, model, batch = informed([1, 2])
    optimizer = ZONewton(model, eps=1e-2, one_sided=one_sided, probes_per_forward=together)
    found = optimizer._measure(lambda inputs: task.logits(model, inputs), batch)
    adapters = [adapter for _, adapter in attached_adapters(model)]
    cores = [adapter.core for adapter in adapters]
    logits = task.logits(model, batch)
    exact = []
    for core in cores:
        rows = [torch.autograd.grad(x, core, retain_graph=True)[0] for x in logits.flatten()]
        exact.append(torch.stack(rows).view(*logits.shape, *core.shape))
    for place, slopes in enumerate(exact):  # (B, C, k + 1, r)
        outer = torch.einsum("bk,brc->bckr", found[place].features, found[place].slopes)
        # A difference over 1e-2 of float32 logits of about 1: rounding 1e-5, curvature 1e-2 of it.
        assert torch.allclose(outer, slopes, atol=2e-3 * float(slopes.abs().max()) + 1e-5)


def test_steps_fit_the_training_texts(tmp_path):
    trainer = trained(tmp_path)
    trainer.train()
    losses = [record.loss for record in read_log(tmp_path / "probes.log")]
    assert len(losses) == 3 == trainer.zo_optimizer.steps
    # What was tried does not make the loss worse, up to the rounding of another order of batches.
    assert losses[1] < losses[0] < 1.2 and losses[2] < losses[1] + 1e-5
    # 4 batches: a plain evaluation, 2 directions of each adapter, of which the first step leaves
    # one, and a trial of each step at the least.
    assert trainer.evaluations >= 4 * (1 + 4 + 1) + 2 * 4 * (1 + 2 + 1)
    trained_ones = [a for _, a in attached_adapters(trainer.model) if a.core.any()]
    assert len(trained_ones) == 1


def test_a_step_that_does_not_help_is_not_made():
    task, model, batch = informed()
    optimizer = ZONewton(model)
    calls = []

    def worse(inputs):  # what was measured does not tell what comes
        calls.append(len(inputs["labels"]))
        logits = task.logits(model, inputs)
        return logits if len(calls) <= 3 else -100 * functional.one_hot(inputs["labels"], 3).float()

    before = bits(model)
    optimizer.step(worse, batch)
    assert_same_bits(model, before)
    assert optimizer.evaluations == len(calls) == 3 + 4


def test_an_example_without_a_finite_logit_does_not_keep_the_others_from_being_learnt():
    task, model, batch = informed()
    optimizer = ZONewton(model)

    def spoilt(inputs):
        logits = task.logits(model, inputs).clone()
        logits[0, 0] = float("nan")
        return logits

    optimizer.step(spoilt, batch)
    assert optimizer.last.dropped == 1 and len(optimizer.last) > 0
    assert all(bool(p.isfinite().all()) for p in optimizer.space.parameters)


def test_a_run_replays_and_resumes_with_the_same_bits(tmp_path):
    whole = trained(tmp_path / "whole", save_strategy="steps", save_steps=2)
    whole.train()
    state = fingerprint_of_state(whole.zo_optimizer)
    again = informed([1, 2])[1]
    assert fingerprint_of_state(replay(tmp_path / "whole" / "probes.log", again)) == state
    part = trained(tmp_path / "part", save_strategy="steps", save_steps=2, max_steps=3)

    part.train()
    resumed = trained(tmp_path / "part", num_train_epochs=3, max_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    assert fingerprint_of_state(resumed.zo_optimizer) == state


def test_saved_adapters_load_with_their_bases(tmp_path):
    trainer = trained(tmp_path / "run")
    trainer.train()
    task, _, batch = informed()
    save_pretrained(trainer.model, tmp_path / "adapter")
    plain = from_pretrained(tiny_llama(layers=3), tmp_path / "adapter")
    with torch.no_grad():
        # Bases and cores are the same; products round by where a tensor lies in memory.
        assert_same_bits(plain, bits(trainer.model))
        one, two = task.logits(plain, batch), task.logits(trainer.model, batch)
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight_decay": 0.1}, "weight_decay must be 0.0"),
        ({"probes": "example"}, "probes must be 'batch'"),
        ({"queries": 2}, "queries must be 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ZONewton(informed()[1], **options)


def test_other_trainable_parameters_are_refused():
    model = add_tt_adapters(tiny_llama(), TTAdapterConfig(rank=2, bottleneck=8))
    with pytest.raises(ValueError, match="informed adapters and nothing else"):
        ZONewton(model)


def test_logits_that_are_no_classification_are_refused():
    _, model, batch = informed()
    with pytest.raises(ValueError, match="is for classification"):
        ZONewton(model).step(lambda inputs: torch.zeros(len(inputs["labels"]), 4, 9), batch)
    with pytest.raises(ValueError, match="needs a batch with labels"):
        ZONewton(model).step(lambda inputs: torch.zeros(2, 2), {"input_ids": batch["input_ids"]})


@pytest.mark.parametrize("how", ["twice", "smoothed"])
def test_a_loss_that_is_no_cross_entropy_of_the_logits_is_refused(tmp_path, how):
    task = informed()[0]

    def twice(model, inputs):
        losses, logits = task.losses(model, inputs)
        return 2 * losses, logits

    options = {"losses": twice} if how == "twice" else {"label_smoothing_factor": 0.2}
    trainer = trained(tmp_path, **options)
    before = bits(trainer.model)
    with pytest.raises(ValueError, match="cross entropy of the logits.*choose another method"):
        trainer.train()
    assert_same_bits(trainer.model, before)


def test_adapters_that_see_several_tokens_are_refused():
    task, model, batch = informed()
    task = PromptTask(task.tokenizer, "{text} it was", WORDS)
    with pytest.raises(ValueError, match="set adapt to 'last'"):
        ZONewton(model).step(lambda inputs: task.logits(model, inputs), batch)


def test_the_command_line_trains_uses_and_replays(tmp_path, capsys):
    model, tokenizer = tiny_llama(layers=3), tiny_tokenizer()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    config = {
        "model": str(tmp_path / "base"), "train_data": str(tmp_path / "data.jsonl"),
        "test_data": str(tmp_path / "data.jsonl"), "template": "{text} it was",
        "label_words": WORDS, "adapt": "last", "form": "informed", "method": "newton",
        "components": 12, "num_train_epochs": 2, "per_device_train_batch_size": 4,
        "output_dir": str(tmp_path / "run"), "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "no",
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert main(["train", str(tmp_path / "config.yaml")]) == 0, capsys.readouterr().err
    trained = load_trained(tmp_path / "run")
    found = predict(trained, load_task(tmp_path / "run"), RECORDS)
    assert found.shape == (len(RECORDS), 3)
    assert main(["replay", str(tmp_path / "run"), "--output", str(tmp_path / "again")]) == 0
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes()
                for name in ("run", "again"))  # fmt: skip
    assert one == two


def test_an_informed_form_that_cannot_be_is_refused_before_any_work(tmp_path, capsys):
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    status = main([
        "train", "--model", str(tmp_path / "base"), "--train_data", str(tmp_path / "data.jsonl"),
        "--template", "{text} it was", "--label_words", json.dumps(WORDS), "--form", "informed",
        "--output_dir", str(tmp_path / "run"), "--use_cpu", "--report_to", "none",
    ])  # fmt: skip
    assert status == 2 and "adapt: last" in capsys.readouterr().err
