"""The settings of the data, and of how a record becomes a prompt."""

from dataclasses import dataclass
from typing import Any

from adazeta.support.settings import setting


@dataclass
class TaskArguments:
    """The data, and how a record becomes a prompt."""

    train_data: str | None = setting(
        None,
        "Data for training (required): a .jsonl, .csv or .tsv file, or a data set of the hub as "
        "owner/name[:config].",
    )
    validation_data: str | None = setting(
        None, "Data for evaluation during training; format as 'train_data'."
    )
    test_data: str | None = setting(
        None, "Data for evaluation after training; format as 'train_data'."
    )
    train_split: str = setting("train", "Split of 'train_data' where that is on the hub.")
    validation_split: str = setting(
        "validation", "Split of 'validation_data' where that is on the hub."
    )
    test_split: str = setting("test", "Split of 'test_data' where that is on the hub.")
    template: str = setting(
        "",
        "Prompt, with columns of the data in braces, e.g. '{text} It was'. A masked language model "
        "needs '{mask}' in it. With 'reward' it may be left out: the column 'prompt' is the "
        "prompt then.",
    )
    label_words: dict[Any, Any] | list[Any] | None = setting(
        None,
        "Makes the task a classification: for each label the word that follows the prompt, e.g. "
        "{0: terrible, 1: great}.",
    )
    label_column: str = setting("label", "Column of the data that holds the label.")
    completion: str | None = setting(
        None,
        "Makes the task language modelling: the template of what follows the prompt, e.g. "
        "'{answer}'.",
    )
    reward: str | list[str] | None = setting(
        None,
        "Makes the task the writing of texts that score well: 'file.py:function', "
        "'package.module:name', a built-in reward, or a list of them. A function gets prompts, "
        "completions and the columns of the data, and returns a number for each completion.",
    )
    reward_weights: list[float] | None = setting(
        None, "Weights of several rewards in their sum; by default 1 each."
    )
    reward_timeout: float | None = setting(
        None, "Seconds that a reward may take for a batch; after that it has no scores for it."
    )
    guard_data: str | None = setting(
        None,
        "With 'reward': texts (column 'text') whose loss is measured at each evaluation, beside "
        "that of the base; format as 'train_data'. Nothing is trained on them.",
    )
    max_new_tokens: int = setting(64, "With 'reward': most tokens of a completion.")
    stop: str | list[str] | None = setting(
        None, "With 'reward': text, or texts, that end a completion and do not belong to it."
    )
    temperature: float = setting(
        0.0,
        "With 'reward': 0 writes the likeliest text; above, texts are sampled, both sides of a "
        "pair with the same random numbers.",
    )
    chat: bool = setting(
        False,
        "With 'reward': put the prompt into the model's chat template, as the message of a user.",
    )
    adapt: str = setting(
        "all",
        "Tokens on which the adapters act: 'all', 'suffix', 'last' or 'answer'. With 'suffix' they "
        "act only on the template's tokens after the last column, and with 'last' only on the last "
        "of these, which makes evaluations far cheaper (classification with causal models). With "
        "'answer' (and 'reward') they act from the prompt's last token on, so that a prompt is "
        "computed once for the whole run and kept, in memory unless 'cache_trunk' is 'disk'.",
    )
    max_length: int | None = setting(
        512, "Longest example in tokens. Columns are cut to fit, the template never is."
    )
