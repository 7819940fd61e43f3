"""Print a script that lets a shell complete commands, arguments and set-ups.

coar completion bash >> ~/.bashrc
coar completion zsh >> ~/.zshrc
coar completion fish > ~/.config/fish/completions/coar.fish
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coarlib import setups
from coarlib.commands.__main__ import load, modules
from coarlib.commands.arguments import Command, Param, run
from coarlib.commands.checkers import Choice

SHELLS = ("bash", "zsh", "fish")
COMMAND = Command(
    "completion",
    __doc__,
    {"shell": Param(Choice(SHELLS), ", ".join(SHELLS), required=True, positional=True)},
)
BASH = """_coar() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if [ "$COMP_CWORD" = 1 ]; then words="{commands} --help --version"
  elif [ "$before" = --task ]; then words="{setups}"
  elif [ "${{word#-}}" != "$word" ]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _coar coar
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the script of the shell that the arguments name."""
    args = COMMAND.parse(argv)
    print(script(args.shell, _flags()), end="")


def _flags() -> dict[str, list[str]]:
    """Return {command: its flags, short ones only}."""
    found = {}
    for name in modules():
        params = load(name).COMMAND.params
        found[name] = [f"--{key}" for key, param in params.items() if not param.positional]
    return found


def script(shell: str, flags: Mapping[str, Sequence[str]]) -> str:
    """Return the completions of ``flags``, {command: its flags}, in a shell's own language."""
    known = " ".join({**setups.names(), **setups.names(setups.HISTORY_FILE)})
    if shell == "fish":
        lines = [f"complete -c coar -n __fish_use_subcommand -a '{' '.join(flags)}'"]
        for command, words in flags.items():
            seen = f"'__fish_seen_subcommand_from {command}'"
            lines += [f"complete -c coar -n {seen} -l {word.removeprefix('--')}" for word in words]
        lines.append(f"complete -c coar -l task -x -a '{known}'")
        return "\n".join(lines) + "\n"
    cases = "\n".join(
        f'      {name}) words="{" ".join(words)}" ;;' for name, words in flags.items()
    )
    text = BASH.format(setups=known, commands=" ".join(flags), cases=cases)
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return start + text


if __name__ == "__main__":
    run(main)
