"""The commands that tell of the package: ``methods`` and ``info``."""

import json
import os
import platform
from importlib import metadata

from adazeta.cli.output import NOT_SET_BY_USERS
from adazeta.support.settings import OneLineParser
from adazeta.version import __version__

METHODS_TEXT = "the methods: paper, state, forwards and passes of a step, settings"
INFO_TEXT = "versions, devices, and which backend serves them"


def run_methods(arguments: list[str]) -> int:
    """Run ``adazeta methods``; return the exit status."""
    parser = OneLineParser(prog="adazeta methods", description=METHODS_TEXT)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    from adazeta.methods import EXAMPLE, table

    if options.json:
        print(json.dumps(table()))
        return 0
    for row in table():
        name = row.pop("method")
        refreshed = ", and 1 at a refresh" if "refresh" in row["settings"] else ""
        beside = f", {row['direction_bytes']:,} bytes beside it" if row["direction_bytes"] else ""
        print(f"{name}: {row['rule']}")
        print(f"  paper     {row['paper']}")
        print(f"  trained   {row['trained']:,} of a matrix of {EXAMPLE} x {EXAMPLE}{beside}")
        print(f"  state     {row['state_bytes']} bytes for each of them")
        print(f"  a step    {row['forwards']} forwards, {row['passes']} passes{refreshed}")
        print(f"  settings  {row['settings']}")
    return 0


def run_info(arguments: list[str]) -> int:
    """Run ``adazeta info``; return the exit status."""
    parser = OneLineParser(prog="adazeta info", description=INFO_TEXT)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--settings", action="store_true", help="print docs/settings.md instead")
    options = parser.parse_args(arguments)
    if options.settings:
        from adazeta.cli.settings_document import settings_document

        print(settings_document(leave_out=NOT_SET_BY_USERS), end="")
        return 0
    import torch

    from adazeta.kernels import backend_name, use_triton
    from adazeta.kernels.cpu.library import level, problem

    facts = {"adazeta": __version__, "python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "accelerate", "safetensors"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    facts["triton interpreter"] = "on" if os.environ.get("TRITON_INTERPRET") == "1" else "off"
    facts["ADAZETA_BACKEND"] = os.environ.get("ADAZETA_BACKEND", "auto")
    facts["C library"] = problem() or f"loads; instruction set: {level()}"
    devices = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        devices += [
            torch.device(accelerator.type, index)
            for index in range(torch.accelerator.device_count())
        ]
    for device in devices:
        name = platform.processor() or platform.machine()
        if device.type != "cpu":
            name = str(torch.get_device_module(device).get_device_name(device))
        probe = torch.empty(0, device=device)
        served, trains = backend_name(probe), "triton" if use_triton(probe) else "reference"
        facts[str(device)] = f"{name}; noise and factors: {served}, tensor-train layers: {trains}"
    if options.json:
        print(json.dumps(facts))
        return 0
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:{width}}  {value}")
    return 0
