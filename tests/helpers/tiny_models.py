"""Random transformers models and a tokenizer, small enough to build in milliseconds.

Every builder is a pure function of its arguments: the weights are drawn under a forked generator,
so the global one is left as it was, and two calls give the same model. Models are float32, on the
CPU, in evaluation mode. The tokenizer's vocabulary fits the models' (VOCABULARY entries).
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

P = ParamSpec("P")
M = TypeVar("M", bound=PreTrainedModel)

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
WORDS = """
    . , : ? ! ' - it was is the a an and or not this that of in to with for as but be on
    terrible great bad good awful wonderful dull bright boring funny
    yes no maybe true false positive negative sentence question answer text label
    movie film plot story acting script music scene director cast ending picture
    i we you he she they one two three four five very really never always quite rather
    red green blue cat dog house tree river
""".split()
VOCABULARY = SPECIAL_TOKENS + WORDS
PAD, BOS, EOS, UNK, MASK = range(len(SPECIAL_TOKENS))
VOCABULARY_SIZE = 112  # a little larger than the vocabulary, as in real models

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

SMALL = {
    "vocab_size": 112, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip


def seeded(build: Callable[P, M]) -> Callable[P, M]:
    """Let a builder draw its weights under a forked generator, and return the model for use."""

    @functools.wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> M:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1234)
            return build(*args, **kwargs).eval()

    return wrapper


@seeded
def tiny_llama(*, hidden: int = 32, layers: int = 2) -> LlamaForCausalLM:
    """Decoder with rotary positions, grouped-query attention and tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


def _bert_config(hidden: int, layers: int, **extra: int) -> BertConfig:
    return BertConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=PAD,
        **extra,
    )


@seeded
def tiny_bert_mlm(*, hidden: int = 32, layers: int = 2) -> BertForMaskedLM:
    """Encoder with a masked-language-model head (tied embeddings)."""
    return BertForMaskedLM(_bert_config(hidden, layers))


@seeded
def tiny_bert_cls(
    *, hidden: int = 32, layers: int = 2, num_labels: int = 2
) -> BertForSequenceClassification:
    """Encoder with a sequence-classification head."""
    return BertForSequenceClassification(_bert_config(hidden, layers, num_labels=num_labels))


@seeded
def tiny_roberta(*, hidden: int = 32, layers: int = 2) -> RobertaForMaskedLM:
    """Encoder with a masked-language-model head; positions start after the padding index."""
    return RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=130,
            type_vocab_size=1,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


@seeded
def tiny_opt(*, hidden: int = 32, layers: int = 2) -> OPTForCausalLM:
    """Decoder with learned positions and biases everywhere; fc1 and fc2 sit in the layer itself."""
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=hidden,
            word_embed_proj_dim=hidden,
            ffn_dim=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


@seeded
def tiny_gpt2(*, hidden: int = 32, layers: int = 2) -> GPT2LMHeadModel:
    """Decoder whose linears are transformers' Conv1D (weight stored as in x out)."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY_SIZE,
            n_embd=hidden,
            n_inner=2 * hidden,
            n_layer=layers,
            n_head=4,
            n_positions=128,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )


@seeded
def tiny_llama_cls(*, layers: int = 2, num_labels: int = 2) -> LlamaForSequenceClassification:
    """Decoder with a sequence-classification head named score, at the last token."""
    config = tiny_llama(layers=layers).config
    config.num_labels = num_labels
    return LlamaForSequenceClassification(config)


@seeded
def tiny_gpt2_cls(*, layers: int = 2, num_labels: int = 2) -> GPT2ForSequenceClassification:
    """The same over Conv1D blocks."""
    config = tiny_gpt2(layers=layers).config
    config.num_labels = num_labels
    return GPT2ForSequenceClassification(config)


@seeded
def tiny_roberta_cls(*, layers: int = 2, num_labels: int = 2) -> RobertaForSequenceClassification:
    """Encoder with a head of two linears, at the first token."""
    config = tiny_roberta(layers=layers).config
    config.num_labels = num_labels
    return RobertaForSequenceClassification(config)


@seeded
def tiny_t5(*, layers: int = 2) -> T5ForConditionalGeneration:
    """Encoder-decoder whose blocks return tuples and share the first block's position bias."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY_SIZE,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=layers,
            num_heads=4,
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=PAD,
        )
    )


@seeded
def tiny_bart(*, layers: int = 2) -> BartForConditionalGeneration:
    """Encoder-decoder with learned positions."""
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY_SIZE,
            d_model=32,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=128,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            decoder_start_token_id=EOS,
            forced_eos_token_id=EOS,
        )
    )


CAUSAL = [tiny_llama, tiny_gpt2, tiny_opt]
MASKED = [tiny_bert_mlm, tiny_roberta]
LANGUAGE = [*CAUSAL, *MASKED, tiny_bart]
CLASSES = [tiny_bert_cls, tiny_roberta_cls, tiny_gpt2_cls, tiny_llama_cls]


def tiny_tokenizer(*, add_special_tokens: bool = True) -> PreTrainedTokenizerFast:
    """Word tokenizer over VOCABULARY: splits on spaces and punctuation, keeps lower case as is.

    With ``add_special_tokens`` a sequence becomes ``<s> ... </s>`` and a pair
    ``<s> ... </s> ... </s>``, as encoders expect; without, nothing is added.
    """
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if add_special_tokens:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> $B:1 </s>:1",
            special_tokens=[("<s>", BOS), ("</s>", EOS)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>" if add_special_tokens else None,
        sep_token="</s>" if add_special_tokens else None,
        model_max_length=128,
    )


def tiny_gemma2() -> Gemma2ForCausalLM:
    """Decoder whose logits are soft-capped after the output embedding."""
    config = Gemma2Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        final_logit_softcapping=0.1,
    )
    return Gemma2ForCausalLM(config).eval()


def tokens(rows=4, width=9):
    """Rows of several lengths, with labels on the last tokens of each."""
    ids = torch.randint(5, 60, (rows, width), generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([width, 4, 6, 7])[:rows, None]
    mask = (torch.arange(width) < lengths).long()
    labels = ids.where((torch.arange(width) >= 3) & mask.bool(), -100)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}
