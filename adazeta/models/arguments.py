"""Which base model, in which dtype, by which class of transformers."""

from dataclasses import dataclass

from adazeta.support.settings import setting

AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "MASKED_LM": "AutoModelForMaskedLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


@dataclass
class ModelArguments:
    """The base model."""

    model: str | None = setting(None, "Base model (required): a hub id, a folder or a .gguf file.")
    dtype: str = setting(
        "auto",
        "Data type of the base model: 'float32', 'bfloat16', 'float16' or 'auto'. 'auto' takes the "
        "checkpoint's own, but float32 on CPUs without bfloat16 instructions.",
    )
    quantise: str = setting(
        "none",
        "How the weights of the base model are held. 'none': in its dtype, also those of a .gguf "
        "file. 'keep': in the blocks of the .gguf file. Quantised as they are loaded: 'bnb-int8' "
        "and 'bnb-nf4' (bitsandbytes), 'torchao-int8', 'torchao-int8-dynamic' and 'torchao-int4' "
        "(torchao). 'dtype' is then that of what is computed.",
    )
