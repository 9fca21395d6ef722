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
        "needs '{mask}' in it.",
    )
    label_words: dict[Any, Any] | list[Any] | None = setting(
        None,
        "Makes the task a classification: for each label the word that follows the prompt, e.g. "
        "{0: terrible, 1: great}. Several words, or a word of several tokens, are scored by the "
        "mean log-likelihood of their tokens (causal models and encoder-decoders).",
    )
    label_column: str = setting("label", "Column of the data that holds the label.")
    classes: list[Any] | None = setting(
        None,
        "Makes the task a classification by a trained head (a sequence-classification model): the "
        "labels, in the order of the head's outputs.",
    )
    choices: str | list[str] | None = setting(
        None,
        "Makes the task multiple choice: the column that holds each example's list of candidates, "
        "or a list of templates, one a candidate, e.g. ['{choice1}', '{choice2}']. 'label_column' "
        "holds the right one's number from 0, or its text; 'completion' may say what follows the "
        "prompt, with {candidate} in it.",
    )
    objective: str = setting(
        "choice",
        "What multiple choice trains: 'choice', the cross entropy over the candidates' scores, or "
        "'likelihood', the likelihood of the right candidate alone.",
    )
    completion: str | None = setting(
        None,
        "Makes the task language modelling: the template of what follows the prompt, e.g. "
        "'{answer}'.",
    )
    references: str | None = setting(
        None,
        "Makes language modelling a task of answers: the column with the right answer, or a list "
        "of them. Evaluation then generates an answer after the prompt and compares it with these; "
        "in 'completion' the column stands for the first of them.",
    )
    max_new_tokens: int | None = setting(
        None, "With 'references': longest generated answer in tokens; by default 50."
    )
    stop: str | list[str] | None = setting(
        None,
        "With 'references': text, or texts, that end a generated answer, by default a line break; "
        "the model's end token always does.",
    )
    metrics: list[str] | None = setting(
        None,
        "Metrics of the evaluation. Of classes: 'accuracy' (default), 'f1' (of the second class), "
        "'macro_f1', 'matthews'. Of answers: 'exact_match' and 'f1' by SQuAD's rules (default), "
        "'rouge' (ROUGE-L; needs rouge-score).",
    )
    chat: bool = setting(
        False,
        "Make the prompt a user's message by the tokenizer's chat template; the answer follows "
        "where the assistant's begins.",
    )
    shots: int = setting(
        0,
        "Demonstrations before every prompt, drawn from the training data by 'shots_seed' and then "
        "not trained on.",
    )
    shots_seed: int = setting(0, "Seed that draws the demonstrations.")
    adapt: str = setting(
        "all",
        "Tokens on which the adapters act: 'all', 'suffix' or 'last'. With 'suffix' they act only "
        "on the template's tokens after the last column, and with 'last' only on the last of "
        "these, which makes evaluations far cheaper (classification with causal models).",
    )
    max_length: int | None = setting(
        512, "Longest example in tokens. Columns are cut to fit, the template never is."
    )
