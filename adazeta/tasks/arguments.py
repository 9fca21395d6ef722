"""The settings of the data, and of how a record becomes a prompt."""

from dataclasses import dataclass
from typing import Any

from adazeta.support.settings import setting

MAIN_SETTINGS = ("label_words", "classes", "choices", "completion", "reward")
"""Settings of which one says what the task is."""


@dataclass
class TaskArguments:
    """The data, and how a record becomes a prompt."""

    train_data: str | None = setting(
        None,
        "Data for training (required, unless a reward makes them): a .jsonl, .csv or .tsv file, or "
        "a data set of the hub as owner/name[:config].",
    )
    validation_data: str | None = setting(
        None, "Data for evaluation during training; format as 'train_data'."
    )
    validation_share: float = setting(
        0.0,
        "Share of the rows of 'train_data' that is kept for evaluation where there is no "
        "'validation_data', by a hash of the row: a row stays on its side when others are added.",
    )
    test_data: str | None = setting(
        None, "Data for evaluation after training; format as 'train_data'."
    )
    train_split: str = setting("train", "Split of 'train_data' where that is on the hub.")
    validation_split: str = setting(
        "validation", "Split of 'validation_data' where that is on the hub."
    )
    test_split: str = setting("test", "Split of 'test_data' where that is on the hub.")
    labels: str | None = setting(
        None,
        "Column of the labels of a classification whose other settings are left to 'adazeta "
        "train': 'template' and 'label_words' are proposed from the data, 'validation_share' is "
        "0.1, and the method is the one that learns most. Each of these can be set.",
    )
    template: str = setting(
        "",
        "Prompt, with columns of the data in braces, e.g. '{text} It was'. A masked language model "
        "needs '{mask}' in it. With 'reward' it may be left out: the column 'prompt' is the "
        "prompt then.",
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
        "What a classification or multiple choice trains: 'choice', the cross entropy over the "
        "labels' or candidates' scores; 'accuracy', the share of right answers itself, as a "
        "reward; or, of multiple choice, 'likelihood' of the right candidate alone.",
    )
    teacher: str | None = setting(
        None,
        "Model whose answers a classification learns instead of labels, which 'train_data' then "
        "need not have: a base model as 'model' is, or the folder of a run with the same labels. "
        "It scores the training texts once, before the model is loaded.",
    )
    hardest: float = setting(
        1.0,
        "With 'teacher': share of the training texts that are trained on, those on which the model "
        "differs most from its teacher before training (Kullback-Leibler divergence).",
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
    metrics: list[str] | None = setting(
        None,
        "Metrics of the evaluation. Of classes: 'accuracy' (default), 'f1' (of the second class), "
        "'macro_f1', 'matthews'. Of answers: 'exact_match' and 'f1' by SQuAD's rules (default), "
        "'rouge' (ROUGE-L; needs rouge-score).",
    )
    shots: int = setting(
        0,
        "Demonstrations before every prompt, drawn from the training data by 'shots_seed' and then "
        "not trained on.",
    )
    shots_seed: int = setting(0, "Seed that draws the demonstrations.")
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
    reward_data: dict[str, Any] | None = setting(
        None,
        "With 'reward: reasoning_gym:TASK' and without 'train_data': how its data are made, e.g. "
        "{train: 1000, validation: 100, test: 200, seed: 0, min_terms: 2}; by default these "
        "numbers and this seed, and the task's own settings. No question is in two of the sets.",
    )
    guard_data: str | None = setting(
        None,
        "With 'reward': texts (column 'text') whose loss is measured at each evaluation, beside "
        "that of the base; format as 'train_data'. Nothing is trained on them.",
    )
    max_new_tokens: int | None = setting(
        None, "Longest generated answer or completion in tokens; by default 50, with 'reward' 64."
    )
    stop: str | list[str] | None = setting(
        None,
        "Text, or texts, that end what is generated and do not belong to it. By default a line "
        "break ends an answer, and nothing a completion; the model's end token always does.",
    )
    temperature: float = setting(
        0.0,
        "With 'reward': 0 writes the likeliest text; above, texts are sampled, both sides of a "
        "pair with the same random numbers.",
    )
    chat: bool = setting(
        False,
        "Make the prompt a user's message by the tokenizer's chat template; the answer follows "
        "where the assistant's begins.",
    )
    adapt: str = setting(
        "all",
        "Tokens on which the adapters act: 'all', 'suffix', 'last' or 'answer'. With 'suffix' they "
        "act only on the template's tokens after the last column, and with 'last' only on the last "
        "of these, which makes evaluations far cheaper (classification with causal models). With "
        "'answer' (and 'reward') they act from the prompt's last token on, so that a prompt is "
        "computed once for the whole run and kept, in memory unless 'cache_trunk' is 'disk'.",
    )
    report_baselines: bool = setting(
        True,
        "After a classification is trained, also measure the model as it was, alone and with the "
        "best number added to each label's logit.",
    )
    max_length: int | None = setting(
        512, "Longest example in tokens. Columns are cut to fit, the template never is."
    )
