"""Completion in bash, zsh and fish: a script with the verbs and their options, taken from the help of each."""

import importlib
import io
import re
import shlex
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress

from glyphlm.cli.main import VERBS
from glyphlm.cli.parser import Parser

BASH = """_glyphlm() {{
  local verb="${{COMP_WORDS[1]}}" here="${{COMP_WORDS[COMP_CWORD]}}" words
  case "$verb ${{COMP_WORDS[2]}} " in
{cases}
    *) words="" ;;
  esac
  [ "$COMP_CWORD" -eq 1 ] && words="{first} --help --version"
  COMPREPLY=($(compgen -W "$words" -- "$here"))
  [[ "$here" == -* || "$COMP_CWORD" -eq 1 ]] || COMPREPLY+=($(compgen -f -- "$here"))
}}
complete -o filenames -F _glyphlm glyphlm
"""
SHELLS = ("bash", "zsh", "fish")


def run_completion(arguments: Sequence[str]) -> None:
    parser = Parser.of(
        "completion",
        "Print a completion script, to be loaded when the shell starts.",
        "glyphlm completion bash > ~/.local/share/bash-completion/completions/glyphlm\n"
        "  glyphlm completion zsh >> ~/.zshrc\n"
        "  glyphlm completion fish > ~/.config/fish/completions/glyphlm.fish",
        json=False,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    shell = parser.read(arguments).shell
    print(_fish() if shell == "fish" else _bash(shell), end="")


def options_of(verb: str) -> list[str]:
    """The options in the help of a verb."""
    shown = io.StringIO()
    run = getattr(importlib.import_module(f"glyphlm.cli.{VERBS[verb][0]}"), f"run_{verb.replace(' ', '_')}")
    with redirect_stdout(shown), suppress(SystemExit):
        run(["--help"])
    found = re.findall(r"^  (?:-\w, )?(--[\w-]+(?:\.[\w.]+)?)", shown.getvalue(), re.MULTILINE)
    return list(dict.fromkeys(found))


def _bash(shell: str) -> str:
    families: dict[str, list[str]] = {}
    for verb in VERBS:
        first, _, second = verb.partition(" ")
        families.setdefault(first, []).append(second)
    cases = [f'    "{verb} "*) words="{" ".join(options_of(verb))}" ;;' for verb in VERBS]
    cases += [f'    "{first} "*) words="{" ".join(seconds)}" ;;' for first, seconds in families.items() if any(seconds)]
    before = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return before + BASH.format(cases="\n".join(cases), first=" ".join(families))


def _fish() -> str:
    lines = []
    for verb, (_, what) in VERBS.items():
        first, _, second = verb.partition(" ")
        seen = f"__fish_seen_subcommand_from {first}" + (f"; and __fish_seen_subcommand_from {second}" if second else "")
        start = f"__fish_seen_subcommand_from {first}" if second else "__fish_use_subcommand"
        lines.append(f"complete -c glyphlm -n '{start}' -a {second or first} -d {shlex.quote(what)}")
        if second:
            lines.append(f"complete -c glyphlm -n __fish_use_subcommand -a {first}")
        lines += [f"complete -c glyphlm -n '{seen}' -l '{option.removeprefix('--')}'" for option in options_of(verb)]
    return "\n".join(dict.fromkeys(lines)) + "\n"
