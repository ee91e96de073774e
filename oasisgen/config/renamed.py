"""Settings that were renamed: refuse old flags, and recognise old names in stored runs and bundles."""

from typing import Any

SETTINGS = {  # group -> old name -> new name
    "vqvae": {
        "gradient_norm": "max_grad_norm",
        "ema_decay": "codebook_ema_decay",
        "average_decay": "weight_ema_decay",
        "most_fall": "max_ssim_drop",
    },
    "dcgan": {
        "palette": "embedding",
        "template": "pca_prior",
        "gradient_penalty": "r1_weight",
        "generator_decay": "weight_ema_decay",
        "least_variety": "collapse_threshold",
    },
    "masked": {
        "rounds": "decoding_steps",
        "places": "positions",
        "average_decay": "weight_ema_decay",
        "gradient_norm": "max_grad_norm",
        "least_variety": "collapse_threshold",
    },
}
PRESETS = {"seed": "baseline"}


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with old setting names replaced by the current ones."""
    renamed = {
        group: {new.get(name, name): value for name, value in config[group].items()}
        for group, new in SETTINGS.items()
        if group in config
    }
    return config | renamed


def find(config: dict[str, Any]) -> str:
    """A message about the first old name in a stored configuration; empty if there is none."""
    for group, new in SETTINGS.items():
        names = config.get(group)
        for name in new.keys() & names.keys() if isinstance(names, dict) else ():
            return f"{group}.{name} is called {group}.{new[name]} now"
    return ""


def require_new_names(arguments: list[str]) -> None:
    """Raise ValueError for a preset or a flag on the command line that was renamed."""
    if arguments and arguments[0] in PRESETS:
        raise ValueError(f"preset {arguments[0]} is called {PRESETS[arguments[0]]} now")
    for argument in arguments:
        flag = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        group, _, name = flag.partition(".")
        negated = name.startswith("no_")
        if argument.startswith("--") and (new := SETTINGS.get(group, {}).get(name.removeprefix("no_"))):
            now = f"{group}.{'no_' if negated else ''}{new}".replace("_", "-")
            raise ValueError(f"{argument.partition('=')[0]} is called --{now} now")
