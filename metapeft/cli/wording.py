"""Sentences of the library in the words of the shell: `--root` where Python says `root=`."""

from __future__ import annotations

import re
from collections.abc import Iterable


def in_the_shell(sentence: str, options: Iterable[str]) -> str:
    """A sentence about arguments as one about options; what a command has no option for stays as it is.

    Args:
        options: of the command that is called, with underscores.

    Example:
        >>> in_the_shell("there is no folder x: put the data there, or give root=, or set METAPEFT_DATA", ["root"])
        'there is no folder x: put the data there, or give --root, or set METAPEFT_DATA'
        >>> in_the_shell("inner_steps=0: allowed is size=1, f(ways=2)", ["inner_steps", "ways"])
        '--inner-steps 0: allowed is size=1, f(ways=2)'
    """
    for name in sorted(options, key=len, reverse=True):
        option = f"--{name.replace('_', '-')}"
        alone = rf"(?<![\w.(\[=/-]){re.escape(name)}"
        sentence = re.sub(rf"{alone}=(?=[\s,;:.)]|$)", option, sentence)
        sentence = re.sub(
            rf"{alone}=(?:'|\")([\w.:/@+-]+)(?:'|\")", rf"{option} \1", sentence
        )  # a word needs no quotes
        sentence = re.sub(rf"{alone}=True\b", option, sentence)
        sentence = re.sub(rf"{alone}=False\b", f"--no-{option[2:]}", sentence)
        sentence = re.sub(rf"{alone}=", f"{option} ", sentence)
        if "_" in name:
            sentence = re.sub(rf"{alone}(?![\w=])", option, sentence)
    return sentence
