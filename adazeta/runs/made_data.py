"""Data that a reward makes itself, where there is no file.

Apart from the reward, whose room knows no records, and from the run, which takes them as any other.
"""

from adazeta.rewards import gym
from adazeta.tasks.arguments import TaskArguments
from adazeta.tasks.records import Records


def makes_data(arguments: TaskArguments) -> str | None:
    """Return the task of reasoning-gym that is to make a run's data; None where files are given.

    Raises:
        ValueError: ``reward_data`` is set and nothing is made, or files are given in part.
    """
    rewards = [arguments.reward] if isinstance(arguments.reward, str) else arguments.reward or []
    tasks = [spec.partition(":")[2] for spec in rewards if spec.partition(":")[0] == gym.NAME]
    task = tasks[0] if tasks else None
    if task is None or arguments.train_data is not None:
        if arguments.reward_data is not None:
            why = f"train_data={arguments.train_data!r}" if task else f"reward={arguments.reward!r}"
            raise ValueError(
                f"reward_data makes data for reward: {gym.NAME}:TASK without train_data, and here "
                f"is {why}; leave reward_data out"
            )
        return None
    for name in ("validation_data", "test_data", "validation_share"):
        if getattr(arguments, name):
            raise ValueError(
                f"{name}={getattr(arguments, name)!r} without train_data, which is made, may hold "
                "questions that are trained on; give train_data too, or sizes in reward_data, e.g. "
                "{train: 1000, validation: 100, test: 200}"
            )
    return task


def made_data(arguments: TaskArguments, *, evaluates: bool) -> dict[str, Records]:
    """Make the data of a run; empty where files are given.

    Args:
        arguments: of the task.
        evaluates: whether the run needs validation examples while it trains.

    Returns:
        ``"train"`` and, where they are not empty, ``"validation"`` and ``"test"``.

    Raises:
        ValueError: there are none to evaluate on; or see :func:`makes_data` and
            :func:`adazeta.rewards.gym.make_data`.
        ImportError: reasoning-gym is not installed.
    """
    task = makes_data(arguments)
    if task is None:
        return {}
    settings = arguments.reward_data or {}
    if evaluates and settings.get("validation") == 0:
        raise ValueError(
            "eval_strategy is set, and reward_data makes no validation examples; set its "
            "validation above 0, or set eval_strategy to 'no'"
        )
    made = gym.make_data(task, settings)
    return {name: Records(rows, f"{gym.NAME}:{task} ({name})") for name, rows in made.items()}
